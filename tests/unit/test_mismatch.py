"""Mismatch of the modalities against automatic differentiation and lists of contributors made in full."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.random_mmgcn import RandomMMGCN
from tests.unit.random_model import RandomModel
from uatmc_dist.config import AdversarialConfig, Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.mismatch import Measured, measure_mismatch, users
from uatmc_dist.evaluation.mismatch.gradients import cosines, single_matrix_residual
from uatmc_dist.evaluation.mismatch.steps import rises, single_steps
from uatmc_dist.evaluation.mismatch.summary import BINS
from uatmc_dist.evaluation.mismatch.training_pairs import TrainingPairs
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.models.vbpr_own_users import OwnUsersContent

LAMBDA = 4.0


def own_users_model(num_users: int, num_items: int, dim: int) -> RandomModel:
    """With a content half of the user for each modality."""
    model = RandomModel(num_users, num_items, dim)
    generator = torch.Generator().manual_seed(7)
    model.dense = OwnUsersContent({"visual": 3, "text": 3}, {"visual": [], "text": []}, dim)
    model.dense.requires_grad_(False)
    for weight in (*model.dense.fusions(), model.dense.bias):
        weight.copy_(torch.randn(weight.shape, generator=generator))
    model.users_UK = torch.randn(num_users, 3 * dim, generator=generator)
    return model


@pytest.fixture(params=["one half", "own users", "graph"])
def model(request, tiny_catalog):
    catalog = Catalog(tiny_catalog)
    sizes = catalog.num_users, catalog.num_items, 6
    if request.param == "graph":
        return RandomMMGCN(known=catalog.split("train"), sizes=sizes, dtype=torch.float32)
    return {"one half": RandomModel, "own users": own_users_model}[request.param](*sizes)


@pytest.fixture
def pairs(model, tiny_catalog):
    return TrainingPairs(Measured.whole(model), Catalog(tiny_catalog))


def eager_loss(
    model, pairs: TrainingPairs, v_Nd: torch.Tensor, t_Nd: torch.Tensor, by_user: bool = False
) -> torch.Tensor:
    users_UK, items_NK = model.embed(v_Nd, t_Nd)
    scores = users_UK[pairs.users_P] @ items_NK.T
    positives = pairs.problem.batch.positives_B[:, None]
    losses = F.softplus(scores - scores.gather(1, positives)).scatter(1, positives, 0.0).sum(1)
    scale = len(losses) * (scores.shape[1] - 1)
    return (
        torch.zeros(len(users_UK), dtype=losses.dtype).index_add(0, pairs.users_P, losses) / scale
        if by_user
        else (losses.sum() / scale)
    )


def test_cosines_and_rises_equal_autograd(model, pairs):
    leaves = [rows.detach().clone().requires_grad_() for rows in (model.v_Nd, model.t_Nd)]
    loss = eager_loss(model, pairs, *leaves)
    slopes = torch.autograd.grad(loss, leaves, create_graph=True)
    cosine_N = F.cosine_similarity(*slopes, dim=1)
    found = cosines(pairs, pairs.gradients())
    assert found["mean"] == pytest.approx(float(cosine_N.mean()), abs=1e-4)
    counts, _ = np.histogram(cosine_N.detach().numpy(), BINS)
    assert np.abs(counts - found["histogram"]["counts"]).sum() <= 2
    coordinated = torch.autograd.grad(loss + LAMBDA * cosine_N.mean(), leaves)
    config, clean = AdversarialConfig(adv_align_weight=LAMBDA), pairs.loss()
    single = single_steps(pairs, config)
    table = [{"epsilon": e, "rise": rises(pairs, config, e, single, clean)} for e in (0.1, 0.5)]
    for entry in table:
        for name, directions in (("uat", slopes), ("uat_mc", coordinated)):
            moved = [
                rows + entry["epsilon"] * rows.norm(dim=1, keepdim=True) * F.normalize(direction.detach(), dim=1)
                for rows, direction in zip(leaves, directions, strict=True)
            ]
            rise = float(eager_loss(model, pairs, *moved) - loss)
            assert entry["rise"][name] == pytest.approx(rise, rel=5e-3, abs=1e-6)
        if pairs.model.is_linear:  # the loss is convex in delta, so that no full step lowers it
            rise = entry["rise"]
            full = [rise["uat"], rise["conditional_gradient x2"], rise["conditional_gradient x3"]]
            assert full == sorted(full)


def test_contributors_equal_a_full_list(model, pairs, monkeypatch):
    gradients = pairs.gradients()
    num_items, num_users = len(gradients[0]), len(model.users_UK)
    monkeypatch.setattr(users, "_LISTED_WITH_GRAPH", 6)
    monkeypatch.setattr(users, "_LISTED", 6)
    monkeypatch.setattr(users, "_DIRECTIONS_AT_ONCE", 4)
    found = users.contributors(pairs, gradients)
    listed = np.sort(np.random.default_rng(1).choice(num_items, size=6, replace=False))
    leaves = [rows.detach().clone().requires_grad_() for rows in (model.v_Nd, model.t_Nd)]
    loss_U = eager_loss(model, pairs, *leaves, by_user=True)
    parts = torch.zeros(2, num_users, len(listed))
    for user in range(num_users):
        slopes = torch.autograd.grad(loss_U[user], leaves, retain_graph=True)
        for index, (slope, whole) in enumerate(zip(slopes, gradients, strict=True)):
            parts[index, user] = (slope[listed] * F.normalize(whole[listed], dim=1)).sum(1)
    tops = parts.topk(users.NUM_TOP, dim=1)
    overlap = (tops.indices[0][:, None] == tops.indices[1][None]).any(1).double().mean()
    assert found["overlap"]["mean"] == pytest.approx(float(overlap), abs=0.05)
    for index, name in enumerate(("visual", "text")):
        share = (tops.values[index].sum(0) / parts[index].sum(0).clamp(min=1e-30)).median()
        assert found[f"{name}_share_of_top"] == pytest.approx(float(share), rel=1e-3)


def test_shifts_of_scores_and_reach(model, pairs):
    gradients = pairs.gradients()
    found = users.shifts(pairs, AdversarialConfig(epsilon=0.3))
    rows = model.v_Nd, model.t_Nd
    clean = _scores(model, pairs, *rows)
    deltas = [0.3 * r.norm(dim=1, keepdim=True) * F.normalize(g, dim=1) for r, g in zip(rows, gradients, strict=True)]
    visual = _scores(model, pairs, rows[0] + deltas[0], rows[1]) - clean
    text = _scores(model, pairs, rows[0], rows[1] + deltas[1]) - clean
    positives = pairs.problem.batch.positives_B[:, None]
    weights = torch.sigmoid(clean - clean.gather(1, positives)).scatter(1, positives, 0.0)
    weights = weights.scatter(1, positives, weights.sum(1, keepdim=True))
    inner = lambda a, b: (weights * a * b).sum(0)  # noqa: E731
    cosine_N = inner(visual, text) / (inner(visual, visual) * inner(text, text)).sqrt()
    assert found["user_cosine"]["mean"] == pytest.approx(float(cosine_N.mean()), abs=2e-3)
    ratio_P = visual.norm(dim=1) / text.norm(dim=1)
    assert found["shift_ratio"]["median"] == pytest.approx(float(ratio_P.median()), rel=2e-2)
    if not pairs.model.is_linear:
        assert users.reach(pairs.model) is None
    else:
        w_v, w_t, _ = model.dense.fusion()
        content = model.users_UK[:, 6:]
        ratio_U = (content @ w_v).norm(dim=1) / (content @ w_t).norm(dim=1)
        assert users.reach(pairs.model)["mean"] == pytest.approx(float(ratio_U.mean()), rel=1e-4)


def _scores(model, pairs, v_Nd, t_Nd):
    users_UK, items_NK = model.embed(v_Nd, t_Nd)
    return users_UK[pairs.users_P] @ items_NK.T


def test_one_matrix_makes_one_gradient_of_the_other_under_one_content_half_alone(model, pairs):
    residual = single_matrix_residual(*pairs.gradients())
    halves = SimpleNamespace(one=isinstance(model, RandomModel) and model.users_UK.shape[1] == 12)
    if halves.one:
        assert residual < 1e-3
    else:
        assert residual > 0.2
    assert single_matrix_residual(torch.randn(11, 6), torch.randn(11, 6)) is None  # too few items to tell


def test_before_is_the_seeded_start_where_the_run_has_no_other(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    config = Config(
        name="x", catalog=tiny_catalog, model={"embedding_dim": 8, "visual_hidden": [8], "text_hidden": [8]}
    )
    model = TrainedModel.initial(config, catalog)
    report = measure_mismatch(config, catalog, Measured.whole(model), lambda: Measured.whole(model))
    assert report["before_is"] == "initial weights" and report["before"] == report["after"]
    assert [entry["epsilon"] for entry in report["after"]["strength"]] == [0.05, 0.1, 0.5]
    bare = config.model_copy(update={"model": config.model.model_copy(update={"content": False})})
    with pytest.raises(UserError, match="no content"):
        measure_mismatch(bare, catalog, Measured.whole(TrainedModel.initial(bare, catalog)), lambda: None)
