"""Mismatch of the modalities' gradients against automatic differentiation and a list of contributors made in full."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.random_model import RandomModel
from uatmc_dist.config import AdversarialConfig, Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation import mismatch
from uatmc_dist.models.trained import TrainedModel


@pytest.fixture(params=[64, 2048])
def measured(request, tiny_catalog, monkeypatch):
    """(catalog, model, report), with batches of this size."""
    monkeypatch.setattr(mismatch, "_PAIRS_AT_ONCE", request.param)
    catalog = Catalog(tiny_catalog)
    model = RandomModel(catalog.num_users, catalog.num_items, 6)
    config = AdversarialConfig(adv_align_weight=4.0)
    return catalog, model, mismatch._Gradients(model, catalog, config).report()


def loss_of(catalog, model, delta_v, delta_t):
    users, positives = (torch.from_numpy(ids) for ids in catalog.split("train"))
    content = F.linear(model.v_Nd + delta_v, model.dense.w_v, model.dense.bias) + F.linear(
        model.t_Nd + delta_t, model.dense.w_t
    )
    scores = model.users_UK[users] @ torch.cat([model.identity_Nd, content], dim=1).T
    losses = F.softplus(scores - scores.gather(1, positives[:, None])).scatter(1, positives[:, None], 0.0)
    return losses.sum() / (len(users) * (catalog.num_items - 1)), scores, users, positives


def test_cosines_and_strength_equal_autograd(measured):
    catalog, model, report = measured
    leaves = [torch.zeros_like(model.v_Nd, requires_grad=True) for _ in range(2)]
    loss, *_ = loss_of(catalog, model, *leaves)
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    cosine_N = F.cosine_similarity(*gradients, dim=1)
    assert report["cosine"]["mean"] == pytest.approx(float(cosine_N.mean()), abs=1e-4)
    counts, _ = np.histogram(cosine_N.detach().numpy(), mismatch._BINS)
    assert np.abs(counts - report["cosine"]["histogram"]["counts"]).sum() <= 2
    coordinated = torch.autograd.grad(loss + 4.0 * cosine_N.mean(), leaves)
    for entry in report["strength"]:
        for name, directions in (("separate", gradients), ("coordinated", coordinated)):
            deltas = [entry["epsilon"] * F.normalize(direction.detach(), dim=1) for direction in directions]
            rise = float(loss_of(catalog, model, *deltas)[0] - loss)
            assert entry[f"rise_{name}"] == pytest.approx(rise, rel=2e-3, abs=1e-6)


def test_contributors_equal_a_full_list(measured):
    catalog, model, report = measured
    leaf = torch.zeros_like(model.v_Nd)
    with torch.enable_grad():
        _, scores, users, positives = loss_of(catalog, model, leaf, leaf)
    weights = torch.sigmoid(scores - scores.gather(1, positives[:, None])).scatter(1, positives[:, None], 0.0)
    weights = weights.scatter(1, positives[:, None], -weights.sum(1, keepdim=True))
    by_user = torch.zeros(catalog.num_users, catalog.num_items).index_add(0, users, weights)
    h = model.users_UK[:, 6:]
    gradient = by_user.T @ h
    tops = []
    for weight in (model.dense.w_v, model.dense.w_t):
        parts = by_user * (h @ weight @ F.normalize(gradient @ weight, dim=1).T)
        tops.append(parts.topk(10, dim=0).indices)
    overlap = (tops[0][:, None] == tops[1][None]).any(1).double().mean()
    assert report["contributors"]["items"] == catalog.num_items
    assert report["contributors"]["overlap"]["mean"] == pytest.approx(float(overlap), abs=1e-3)


def test_before_is_the_seeded_start_where_the_run_has_no_other(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    config = Config(
        name="x", catalog=tiny_catalog, model={"embedding_dim": 8, "visual_hidden": [8], "text_hidden": [8]}
    )
    model = TrainedModel.initial(config, catalog)
    report = mismatch.measure_mismatch(config, catalog, model)
    assert report["before_is"] == "initial weights" and report["before"] == report["after"]
    bare = config.model_copy(update={"model": config.model.model_copy(update={"content": False})})
    with pytest.raises(UserError, match="no content"):
        mismatch.measure_mismatch(bare, catalog, TrainedModel.initial(bare, catalog))
