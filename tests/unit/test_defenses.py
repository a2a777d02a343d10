"""Defences beside the coordinated adversary: the certified loss, noise, single modalities."""

import pytest
import torch
import torch.nn.functional as F

from tests.unit.random_model import content_model
from tests.unit.test_coordination import ITEMS, OBJECTIVES, D, SeenView, deltas_of, problem
from uatmc_dist.adversary.budget import AnyContent, Ball, worst_case_bonus
from uatmc_dist.adversary.coordination import AscentRule, closed_form
from uatmc_dist.adversary.defenses import Noise, Problem, adversary, certified_loss
from uatmc_dist.config import AdversarialConfig
from uatmc_dist.models.backbone import LinearContent, Scored
from uatmc_dist.seeding import normal_rows


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_worst_case_bonus_is_attained_and_never_passed(norm):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    h_Ad, w_v, w_t = normal(40, D), normal(D, D), normal(D, D)
    visual, text = Ball(0.2, norm), Ball(0.3, norm)
    bonus_A = worst_case_bonus(h_Ad, w_v, w_t, visual, text)
    rows = F.normalize(normal(40, D), dim=1)
    zero = torch.zeros_like(rows)

    def gain_A(direction_v, direction_t):
        delta_v, delta_t = visual.ascend(zero, direction_v, rows, 1.0), text.ascend(zero, direction_t, rows, 1.0)
        return (delta_v * (h_Ad @ w_v)).sum(1) + (delta_t * (h_Ad @ w_t)).sum(1)

    torch.testing.assert_close(gain_A(h_Ad @ w_v, h_Ad @ w_t), bonus_A)
    for _ in range(20):
        assert (gain_A(normal(40, D), normal(40, D)) <= bonus_A + 1e-12).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_handicap_raises_the_score_of_every_negative(objective):
    view, _ = problem(objective)
    bonus_B = torch.rand(len(view.users_BK), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    items_nK = view.items()
    ours = view.objective.loss(view.users_BK, items_nK, view.batch, view.rows, bonus_B)
    scores_Bn = view.users_BK @ items_nK.T
    batch = view.batch
    positive_B = scores_Bn[torch.arange(len(batch)), view.rows.index_of(batch.positives_B)]
    if objective == "sampled":
        negative_B = scores_Bn[torch.arange(len(batch)), view.rows.index_of(batch.negatives_B)]
        truth = F.softplus(-(positive_B - negative_B - bonus_B)).mean()
    else:
        kept = torch.ones_like(scores_Bn)
        kept[torch.arange(len(batch)), batch.positives_B] = 0
        if "known" in objective:
            offsets, columns = view.objective._known.within(batch.users_B, 0, ITEMS)
            rows = torch.repeat_interleave(torch.arange(len(batch)), offsets.diff())
            kept[rows, columns] = 0
        if "offset" in objective:
            offset_n = torch.linspace(0, 2, ITEMS, dtype=torch.float64)
            scores_Bn, positive_B = scores_Bn + offset_n, positive_B + offset_n[batch.positives_B]
        raised_Bn = scores_Bn + bonus_B[:, None] - positive_B[:, None]
        if "softmax" in objective:
            truth = torch.log1p((raised_Bn.exp() * kept).sum(1)).mean()
        else:
            truth = (F.softplus(raised_Bn) * kept).sum() / kept.sum()
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("objective", ["sampled", "full_catalog", "softmax"])
@pytest.mark.parametrize("budget", ["ball", "any_content"])
@pytest.mark.parametrize("text_weight", [1.0, 0.4])
def test_the_certified_loss_is_that_of_negatives_raised_as_far_as_can_be(objective, budget, text_weight):
    view, _ = problem(objective)
    batch = view.batch
    dense = content_model(D).double()
    for weight in dense.fusions():
        torch.nn.init.normal_(weight)
    seen = SeenView(view)
    users_BK = seen.clean.users_BK.detach().clone().requires_grad_()
    content_nC = view.v_nd @ dense.w_v.T + view.t_nd @ dense.w_t.T + dense.bias
    seen.clean = Scored(users_BK, torch.cat([view.identity_nd, content_nC], dim=1))
    seen.linear = LinearContent(view.identity_nd, content_nC, *dense.fusion())
    config = AdversarialConfig(adversary="certified", epsilon=0.2, budget=budget, text_weight=text_weight)
    ours = certified_loss(config, Problem(view.objective, batch, view.rows, seen))
    h = users_BK[:, D:]
    scores_Bn = users_BK @ seen.clean.items_nK.T
    along = (0.2, h @ dense.w_v, view.v_nd), (0.2 * text_weight, h @ dense.w_t, view.t_nd)
    if budget == "ball":
        raised_Bn = scores_Bn + sum(share * directions.norm(dim=1, keepdim=True) for share, directions, _ in along)
    else:
        raised_Bn = scores_Bn + sum(
            share * (directions.norm(dim=1, keepdim=True) - directions @ rows.T) for share, directions, rows in along
        )
    index_B = view.rows.index_of(batch.positives_B)
    excess_Bn = raised_Bn - scores_Bn.gather(1, index_B[:, None])
    if objective == "sampled":
        negatives_B = view.rows.index_of(batch.negatives_B)
        truth = F.softplus(excess_Bn.gather(1, negatives_B[:, None])).mean()
    else:
        kept_Bn = torch.ones_like(excess_Bn).scatter(1, index_B[:, None], 0.0)
        if objective == "softmax":
            truth = torch.log1p((excess_Bn.exp() * kept_Bn).sum(1)).mean()
        else:
            truth = (F.softplus(excess_Bn) * kept_Bn).sum() / kept_Bn.sum()
    torch.testing.assert_close(ours, truth)
    ours.backward()
    assert users_BK.grad is not None and users_BK.grad[:, D:].any(dim=1).all()
    assert dense.w_v.grad is not None and dense.w_v.grad.any() and dense.visual[0].weight.grad is None
    assert adversary(config, ITEMS, 0) is None


@pytest.mark.parametrize("name, still", [("visual_only", 1), ("text_only", 0)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_single_modality_leaves_the_other_alone(name, still, steps):
    view, _ = problem("full_catalog")
    items_nK = view.items()
    gradient = view.content_gradient(items_nK)
    config = AdversarialConfig(adversary=name, epsilon=0.2, steps=steps)
    deltas = deltas_of(adversary(config, ITEMS, 0), view)
    assert not deltas[still].any() and deltas[1 - still].any(dim=1).all()
    if steps == 1:  # the moved one is what both modalities together would do
        both = closed_form(view, AscentRule(Ball(0.2, "l2"), 1, 0.0, ITEMS), items_nK, gradient)
        torch.testing.assert_close(deltas[1 - still], both[1 - still])


@pytest.mark.parametrize("budget", ["ball", "any_content"])
@pytest.mark.parametrize("name, steps", [("uat", 1), ("uat", 3), ("user_coordination", 2), ("noise", 1)])
def test_a_modality_has_its_share_of_epsilon(name, steps, budget):
    view, _ = problem("full_catalog")
    given = {"adversary": name, "steps": steps, "budget": budget, "adv_align_weight": 0.0}
    whole = AdversarialConfig(epsilon=0.3, **given)
    weighted = AdversarialConfig(epsilon=0.6, visual_weight=0.5, text_weight=0.1, **given)
    text_alone = AdversarialConfig(epsilon=0.06, **given)
    ours, visual, text = (deltas_of(adversary(c, ITEMS, 0), view) for c in (weighted, whole, text_alone))
    if steps == 1:
        torch.testing.assert_close(ours, (visual[0], text[1]))
    if budget == "ball":
        for delta, rows, share in zip(ours, (view.v_nd, view.t_nd), (0.3, 0.06), strict=True):
            torch.testing.assert_close(delta.norm(dim=1), share * rows.norm(dim=1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_noise_has_full_length_a_direction_of_its_own_for_each_step_and_needs_no_gradient(norm):
    view, _ = problem("full_catalog")
    noise = Noise((Ball(0.2, norm), Ball(0.2, norm)), seed=3, weight=1.0)
    problem_of_noise = Problem(view.objective, view.batch, view.rows, SeenView(view))
    steps = [noise(problem_of_noise, torch.tensor(0.0), step) for step in (0, 1)]  # a loss without a graph
    for deltas in steps:
        for delta, row in zip(deltas, (view.v_nd, view.t_nd), strict=True):
            size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(dim=1)
            torch.testing.assert_close(size, 0.2 * row.norm(dim=1))
    assert not torch.equal(steps[0][0], steps[1][0]) and not torch.equal(steps[0][0], steps[0][1])
    again = noise(problem_of_noise, torch.tensor(0.0), 0)
    assert torch.equal(again[0], steps[0][0])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_any_content_goes_so_much_of_the_way_to_rows_of_length_one(share):
    generator = torch.Generator().manual_seed(0)
    rows, gradient = (torch.randn(20, D, generator=generator).double() for _ in range(2))
    rows, budget = F.normalize(rows, dim=1), AnyContent(share)
    rows[4], gradient[5] = 0, 0  # no photo; no gradient
    zero = torch.zeros_like(rows)
    best = rows + budget.ascend(zero, gradient, rows, 1.0)
    moved = torch.arange(20) != 5
    reached = (best * gradient).sum(1) - (rows * gradient).sum(1)
    torch.testing.assert_close(reached[moved], budget.gain(gradient, rows).diagonal()[moved])
    assert torch.equal(best[5], rows[5])
    for step in (0.2, 0.7, 2.0):
        delta = budget.ascend(budget.ascend(zero, -gradient, rows, 0.4), gradient, rows, step)
        towards = (rows + delta - (1 - share) * rows) / share
        torch.testing.assert_close(towards[moved].norm(dim=1), torch.ones(19).double())
        torch.testing.assert_close(budget.project(delta, rows), delta)
        assert ((delta * gradient).sum(1) <= reached + 1e-12).all()


def test_normal_rows_do_not_depend_on_how_they_are_shared_out():
    whole = normal_rows(0, 23, 4, 1, 2, block=5)
    for lo, hi in ((0, 0), (0, 7), (4, 5), (5, 23), (11, 19)):
        assert torch.equal(normal_rows(lo, hi, 4, 1, 2, block=5), whole[lo:hi])
    assert abs(float(whole.mean())) < 0.4 and 0.7 < float(whole.std()) < 1.3
