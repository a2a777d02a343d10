"""The adversary: closed form against automatic double differentiation, in float64, for every objective."""

import numpy as np
import pytest
import torch

from uatmc_dist.adversary.budget import Budget
from uatmc_dist.adversary.coordination import AscentRule, LinearView, closed_form, general_form
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.models.objectives import FullCatalog, Sampled, Softmax
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_kernels import coordinate

USERS, ITEMS, PAIRS, D = 20, 60, 33, 5
OBJECTIVES = "sampled", "full_catalog", "known", "softmax", "softmax/known", "softmax/offset"


def problem(objective_name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(0, USERS * ITEMS, size=200))
    known = KnownPositives(keys // ITEMS, keys % ITEMS, USERS, ITEMS)
    chosen = torch.from_numpy(rng.choice(keys, PAIRS))
    negatives = torch.from_numpy(rng.integers(0, ITEMS, PAIRS))
    batch = Batch(chosen // ITEMS, chosen % ITEMS, negatives)
    block = ItemBlock(ITEMS, 0, 1)
    objective = {
        "sampled": lambda: Sampled(block),
        "full_catalog": lambda: FullCatalog(block, known, False),
        "known": lambda: FullCatalog(block, known, True),
        "softmax": lambda: Softmax(block, known, False),
        "softmax/known": lambda: Softmax(block, known, True),
        "softmax/offset": lambda: Softmax(block, known, False, None, torch.linspace(0, 2, ITEMS, dtype=torch.float64)),
    }[objective_name]()
    rows = objective.rows(batch)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    n = len(rows.ids_n)
    view = LinearView(
        objective, batch, rows, normal(PAIRS, 2 * D), normal(n, D), normal(n, D), normal(n, D),
        normal(D, D), normal(D, D), normal(D),
    )  # fmt: skip

    def loss(v, t):
        content = v @ view.w_v.T + t @ view.w_t.T + view.bias
        return objective.loss(view.users_BK, torch.cat([view.identity_nd, content], dim=1), batch, rows)

    return view, loss


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("adv_align_weight", [0.0, 4.0])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_closed_form_equals_double_differentiation(objective, steps, adv_align_weight, norm):
    view, loss = problem(objective)
    rule = AscentRule(Budget(0.3, norm), steps, adv_align_weight, ITEMS)
    ours = closed_form(view, rule, view.items(), view.content_gradient(view.items()))
    truths = general_form(loss, view.v_nd, view.t_nd, rule)
    for delta, truth, row in zip(ours, truths, (view.v_nd, view.t_nd), strict=True):
        torch.testing.assert_close(delta, truth, rtol=1e-9, atol=1e-9)
        size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(dim=1)
        assert (size <= 0.3 * row.norm(dim=1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_full_gradient_of_j_equals_double_differentiation(objective):
    """The direction itself, before it is normalised row by row."""
    view, loss = problem(objective)
    items = view.items()
    g = view.content_gradient(items)
    _, omega = coordinate(g.contiguous(), view.w_v, view.w_t)
    omega *= len(omega) / ITEMS
    direction = g + 4.0 * view.content_hvp(items, omega)

    leaves = [torch.zeros_like(view.v_nd, requires_grad=True), torch.zeros_like(view.t_nd, requires_grad=True)]
    value = loss(view.v_nd + leaves[0], view.t_nd + leaves[1])
    first = torch.autograd.grad(value, leaves, create_graph=True)
    kept = (first[0] != 0).any(dim=1)  # an item that is its own negative has no gradient, and no direction
    cosines = torch.nn.functional.cosine_similarity(first[0][kept], first[1][kept], dim=1, eps=0.0).sum() / ITEMS
    truth_v, truth_t = torch.autograd.grad(value + 4.0 * cosines, leaves)
    torch.testing.assert_close(direction @ view.w_v, truth_v, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(direction @ view.w_t, truth_t, rtol=1e-10, atol=1e-9)


def test_the_adversary_raises_the_loss_and_coordination_raises_the_alignment():
    view, loss = problem("full_catalog")

    def loss_and_alignment(adv_align_weight):
        rule = AscentRule(Budget(0.05, "l2"), 1, adv_align_weight, ITEMS)
        delta_v, delta_t = closed_form(view, rule, view.items(), view.content_gradient(view.items()))
        leaves = [delta_v.requires_grad_(), delta_t.requires_grad_()]
        value = loss(view.v_nd + leaves[0], view.t_nd + leaves[1])
        cosine = torch.nn.functional.cosine_similarity(*torch.autograd.grad(value, leaves), dim=1).mean()
        return float(value), float(cosine)

    clean = float(loss(view.v_nd, view.t_nd))
    plain, coordinated = loss_and_alignment(0.0), loss_and_alignment(1.0)
    assert plain[0] > clean
    assert coordinated[1] > plain[1]
