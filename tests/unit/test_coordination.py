"""The adversary: closed form against automatic double differentiation, in float64, for every objective."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uatmc_dist.adversary.budget import Ball
from uatmc_dist.adversary.coordination import AscentRule, LinearView, closed_form, general_form
from uatmc_dist.adversary.defenses import Problem
from uatmc_dist.adversary.user_space import sum_of_user_cosines
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.models.backbone import LinearContent, Scored
from uatmc_dist.models.objectives import FullCatalog, Sampled, Softmax
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_kernels import coordinate

USERS, ITEMS, PAIRS, D = 20, 60, 33, 5
SEED_WITHOUT_OWN_NEGATIVES = 3
OBJECTIVES = "sampled", "full_catalog", "known", "softmax", "softmax/known", "softmax/offset"


def problem(objective_name, seed=0, own_users=False):
    """(what the adversary sees, the loss as a function of v and t); with `own_users` the fusion is that of
    vbpr_own_users."""
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
    n, width = len(rows.ids_n), 2 * D if own_users else D
    w_v, w_t = normal(D, D), normal(D, D)
    if own_users:
        w_v, w_t = F.pad(w_v, (0, 0, 0, D)), F.pad(w_t, (0, 0, D, 0))
    view = LinearView(
        objective, batch, rows, normal(PAIRS, D + width), normal(n, D), normal(n, D), normal(n, D),
        w_v, w_t, normal(width),
    )  # fmt: skip

    def loss(v, t):
        content = v @ view.w_v.T + t @ view.w_t.T + view.bias
        return objective.loss(view.users_BK, torch.cat([view.identity_nd, content], dim=1), batch, rows)

    return view, loss


class SeenView:
    """A LinearView as a backbone would give it (models/backbone.py, View)."""

    def __init__(self, linear: LinearView) -> None:
        content_nC = linear.items()[:, D:].requires_grad_()
        self.v_nd, self.t_nd, self.content_rows = linear.v_nd, linear.t_nd, linear.rows
        self.linear = LinearContent(linear.identity_nd, content_nC, linear.w_v, linear.w_t, linear.bias)
        self.clean = Scored(linear.users_BK, torch.cat([linear.identity_nd, content_nC], dim=1))


def deltas_of(adversary, linear: LinearView, step=0):
    """What a defence makes of the problem."""
    seen = Problem(linear.objective, linear.batch, linear.rows, SeenView(linear))
    return adversary(seen, seen.loss(seen.view.clean), step)


@pytest.mark.parametrize("own_users", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("adv_align_weight, conditional", [(0.0, False), (4.0, False), (0.0, True)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_closed_form_equals_double_differentiation(objective, steps, adv_align_weight, conditional, norm, own_users):
    view, loss = problem(objective, own_users=own_users)
    rule = AscentRule(Ball(0.3, norm), steps, adv_align_weight, ITEMS, conditional_gradient=conditional)
    ours = closed_form(view, rule, view.items(), view.content_gradient(view.items()))
    truths = general_form(loss, view.v_nd, view.t_nd, rule)
    for delta, truth, row in zip(ours, truths, (view.v_nd, view.t_nd), strict=True):
        torch.testing.assert_close(delta, truth, rtol=1e-8, atol=1e-8)
        size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(dim=1)
        assert (size <= 0.3 * row.norm(dim=1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("scale", [1e-12, 1e-17, 1e-25])
def test_gradients_of_nearly_nothing_leave_the_general_form_finite(scale):
    """Of a pair that is well apart; lambda is scaled with the loss, so that J is the same but for its size."""
    view, loss = problem("sampled")
    find = lambda of, weight, rows: general_form(of, *rows, AscentRule(Ball(0.3, "l2"), 1, weight, ITEMS))  # noqa: E731
    rows = view.v_nd.float(), view.t_nd.float()
    found = find(lambda v, t: scale * loss(v.double(), t.double()).float(), 2.0 * scale, rows)
    for delta, truth in zip(found, find(loss, 2.0, (view.v_nd, view.t_nd)), strict=True):
        assert delta.isfinite().all()
        # Nothing is seen of it, but in the few rows that are beyond 1e-30.
        assert torch.isclose(delta.double(), truth, rtol=1e-3, atol=1e-4).all(1).float().mean() > 0.9


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
        rule = AscentRule(Ball(0.05, "l2"), 1, adv_align_weight, ITEMS)
        delta_v, delta_t = closed_form(view, rule, view.items(), view.content_gradient(view.items()))
        leaves = [delta_v.requires_grad_(), delta_t.requires_grad_()]
        value = loss(view.v_nd + leaves[0], view.t_nd + leaves[1])
        cosine = torch.nn.functional.cosine_similarity(*torch.autograd.grad(value, leaves), dim=1).mean()
        return float(value), float(cosine)

    clean = float(loss(view.v_nd, view.t_nd))
    plain, coordinated = loss_and_alignment(0.0), loss_and_alignment(1.0)
    assert plain[0] > clean
    assert coordinated[1] > plain[1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_step_of_conditional_gradient_lowers_the_loss(objective, norm):
    rose = []
    for seed in range(3):
        view, loss = problem(objective, seed)
        values = [loss(view.v_nd, view.t_nd)]
        for steps in range(1, 6):
            rule = AscentRule(Ball(0.5, norm), steps, 0.0, ITEMS, conditional_gradient=True)
            deltas = closed_form(view, rule, view.items(), view.content_gradient(view.items()))
            values.append(loss(view.v_nd + deltas[0], view.t_nd + deltas[1]))
        assert all(after >= before - 1e-12 for before, after in pairwise(map(float, values))), values
        rose.append(float(values[2] - values[1]))
    assert max(rose) > 0  # the second step does what the first could not know


def eager_user_alignment(view, delta_v, delta_t):
    """cos_j [n] over the pairs of the score shifts of both modalities, weighted by |dL/ds|, a constant."""
    scores = (view.users_BK @ view.items().T).detach().requires_grad_()
    batch, index_B = view.batch, torch.arange(len(view.batch))
    positives_B = view.rows.index_of(batch.positives_B)
    positive_B, N = scores[index_B, positives_B], scores.shape[1]
    if isinstance(view.objective, Sampled):
        loss = F.softplus(scores[index_B, view.rows.index_of(batch.negatives_B)] - positive_B).mean()
    else:
        kept = torch.ones_like(scores, dtype=torch.bool)
        seen = view.objective._seen(batch, scores.device)
        if seen is not None:
            kept[torch.repeat_interleave(index_B, seen[0].diff()), seen[1]] = False
        kept[index_B, positives_B] = False
        if isinstance(view.objective, FullCatalog):
            loss = (F.softplus(scores - positive_B[:, None]) * kept).sum() / kept.sum()
        else:
            offset_n = view.objective._offset_N if view.objective._offset_N is not None else scores.new_zeros(N)
            kept[index_B, positives_B] = True
            raised = (scores + offset_n).masked_fill(~kept, -torch.inf)
            loss = F.cross_entropy(raised, positives_B)
    weights = torch.autograd.grad(loss, scores)[0].abs()
    content_BC = view.users_BK[:, D:]
    shift_v, shift_t = content_BC @ (delta_v @ view.w_v.T).T, content_BC @ (delta_t @ view.w_t.T).T
    inner = lambda a, b: (weights * a * b).sum(0)  # noqa: E731
    product = inner(shift_v, shift_v) * inner(shift_t, shift_t)
    return torch.where(product > 0, inner(shift_v, shift_t) / product.where(product > 0, 1).sqrt(), 0.0)


@pytest.mark.parametrize("own_users", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_alignment_in_user_space_and_its_gradient_equal_automatic_differentiation(objective, own_users):
    view, _ = problem(objective, seed=SEED_WITHOUT_OWN_NEGATIVES, own_users=own_users)
    assert not (view.batch.positives_B == view.batch.negatives_B).any()  # which would cancel there
    deltas = [torch.randn(view.v_nd.shape, generator=torch.Generator().manual_seed(s)).double() for s in (5, 6)]
    for delta in deltas:
        delta[3] = 0  # no shift, no cosine
    leaves = [delta.requires_grad_() for delta in deltas]
    truth_n = eager_user_alignment(view, *leaves)
    truth_v, truth_t = torch.autograd.grad(truth_n.sum(), leaves)
    cosine_n, slope_v, slope_t = view.user_alignment(view.items(), *(delta.detach() for delta in deltas))
    torch.testing.assert_close(cosine_n, truth_n.detach(), rtol=1e-7, atol=1e-8)
    clean, moved_v, moved_t = (
        Scored(view.users_BK, view.items(*moved)) for moved in ((0.0, 0.0), (leaves[0], 0.0), (0.0, leaves[1]))
    )
    weights = view.objective.score_weights(view.users_BK, view.items(), view.batch, view.rows)
    general = sum_of_user_cosines(clean, moved_v, moved_t, weights)
    torch.testing.assert_close(general.detach(), truth_n.detach().sum())
    for ours, truth in zip(torch.autograd.grad(general, leaves), (truth_v, truth_t), strict=True):
        torch.testing.assert_close(ours[4:], truth[4:], rtol=1e-6, atol=1e-7)
    assert cosine_n[3] == 0 and cosine_n.abs().max() <= 1 + 1e-12
    for slope, truth in ((slope_v, truth_v), (slope_t, truth_t)):
        torch.testing.assert_close(slope[4:], truth[4:], rtol=1e-6, atol=1e-7)


def test_small_weights_and_shifts_do_not_vanish():
    """In float32, as a trained model has them: weights of 1e-20 and shifts of 1e-12 say the same as weights and shifts
    of 1, and so do their slopes, times 1e12."""
    generator = torch.Generator().manual_seed(3)
    users, items, along_v, along_t = (torch.randn(n, 4, generator=generator) for n in (6, 5, 5, 5))
    weights_Bn = torch.rand(6, 5, generator=generator)
    found = []
    for weight, size in ((1.0, 1.0), (1e-20, 1e-12)):
        clean = Scored(users, torch.zeros_like(items))  # scores of 0, to which small shifts add
        moved = [(size * rows).requires_grad_() for rows in (along_v, along_t)]
        given = iter([(slice(0, 5), weight * weights_Bn)])
        total = sum_of_user_cosines(clean, *(Scored(users, rows) for rows in moved), given)
        found.append((total.detach(), *(size * slope for slope in torch.autograd.grad(total, moved))))
    for ours, truth in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_coordination_in_user_space_begins_with_the_second_step(objective):
    view, _ = problem(objective, own_users=True)

    def reached(adv_align_weight, steps):
        rule = AscentRule(Ball(0.3, "l2"), steps, adv_align_weight, ITEMS, space="users")
        return closed_form(view, rule, view.items(), view.content_gradient(view.items()))

    assert torch.equal(reached(0.0, 1)[0], reached(10.0, 1)[0])
    alone, coordinated = reached(0.0, 2), reached(10.0, 2)
    for delta, other, row in zip(coordinated, alone, (view.v_nd, view.t_nd), strict=True):
        assert (delta - other).norm() > 0.01 * other.norm()
        assert (delta.norm(dim=1) <= 0.3 * row.norm(dim=1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("objective", ["sampled", "full_catalog", "softmax"])
def test_the_compiler_sees_the_closed_form_as_one_graph(objective):
    """Nothing in it waits for a number or leaves Python's sight, which CUDA graphs and torch.compile both ask for."""
    import torch._dynamo.config

    linear, _ = problem(objective)
    rule = AscentRule(Ball(0.3, "l2"), 2, 4.0, ITEMS)

    def deltas(users, identity, v, t, w_v, w_t, bias, items, gradient):
        given = LinearView(linear.objective, linear.batch, linear.rows, users, identity, v, t, w_v, w_t, bias)
        return closed_form(given, rule, items, gradient)

    tensors = linear.users_BK, linear.identity_nd, linear.v_nd, linear.t_nd, linear.w_v, linear.w_t, linear.bias
    items = linear.items()
    inputs = *tensors, items, linear.content_gradient(items)
    truths = deltas(*inputs)  # the batch's places are planned once, on the CPU, before any step asks for them
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(deltas, fullgraph=True, backend="aot_eager")(*inputs)
    for ours, truth in zip(compiled, truths, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
