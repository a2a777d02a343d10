"""MMGCN against a straightforward float64 implementation, its adversary, and what a changed item changes."""

import pytest
import torch
import torch.nn.functional as F

from tests.unit.random_mmgcn import ITEMS, USERS, D, RandomMMGCN
from uatmc_dist.adversary.budget import AnyContent, Ball
from uatmc_dist.adversary.coordination import AscentRule, general_form
from uatmc_dist.attacks.apgd import APGD
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.graph import GraphTargets
from uatmc_dist.attacks.losses import Hinge, SoftRank
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.evaluation.mismatch.gradients import single_matrix_residual
from uatmc_dist.evaluation.stage import GraphStage
from uatmc_dist.models.mmgcn import MMGCNContent, Nodes
from uatmc_dist.models.neighbourhood import CleanState, Neighbourhood, OwnMMGCN

K = 5


def eager(model: RandomMMGCN, v_Nd: torch.Tensor, t_Nd: torch.Tensor) -> Nodes:
    """The formulas, with the adjacency as a dense matrix of all nodes."""
    adjacency = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    users_E, items_E = model.known.pairs()
    adjacency[users_E, USERS + items_E] = adjacency[USERS + items_E, users_E] = 1
    adjacency = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    identity = torch.cat(model.identity)
    total = 0
    for name, z in (("visual", v_Nd), ("text", t_Nd)):
        y = z @ model.dense.to_latent.weight.T + model.dense.to_latent.bias if name == "visual" else z
        x = torch.cat([model.preference[name], y])
        x = x / x.norm(dim=1, keepdim=True)
        for layer in model.dense.layers(name):
            h = F.leaky_relu(adjacency @ x @ layer.theta, 0.01)
            skipped = F.leaky_relu(x @ layer.skip.weight.T + layer.skip.bias, 0.01) + identity
            x = F.leaky_relu(torch.cat([h, skipped], dim=1) @ layer.join.weight.T + layer.join.bias, 0.01)
        total = total + x
    return Nodes(*(total / 2).split([USERS, ITEMS]))


def test_embeddings_equal_the_formulas():
    model = RandomMMGCN()
    for ours, truth in zip(model.embed(model.v_Nd, model.t_Nd), eager(model, model.v_Nd, model.t_Nd), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-7)  # shares of a mean are kept in float32


def test_widths_and_start_are_the_published_ones():
    dense = MMGCNContent({"visual": 20, "text": 12}, {"visual": [], "text": []}, 64)
    assert [tuple(layer.theta.shape) for layer in dense.layers("visual")] == [(256, 256), (64, 64), (64, 64)]
    assert [tuple(layer.theta.shape) for layer in dense.layers("text")] == [(64, 64)] * 3
    assert tuple(dense.layers("visual")[0].join.weight.shape) == (64, 320) and dense.to_latent.out_features == 256
    assert float(dense.layers("visual")[0].theta.std()) == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert float(dense.log_temperature.neg().exp()) == pytest.approx(1.0725, abs=1e-4)


def test_propagation_differentiates_to_second_order():
    model = RandomMMGCN()
    users, items = torch.randn(USERS, 2).double().requires_grad_(), torch.randn(ITEMS, 2).double().requires_grad_()
    of_both = lambda u, i: torch.cat(model.graph.propagate(u, i))  # noqa: E731
    assert torch.autograd.gradcheck(of_both, (users, items))
    assert torch.autograd.gradgradcheck(lambda u, i: of_both(u, i).square(), (users, items))


def bpr(model: RandomMMGCN):
    """A BPR loss as a function of v and t."""
    users_E, items_E = model.known.pairs()
    negatives = torch.randint(ITEMS, users_E.shape, generator=torch.Generator().manual_seed(1))

    def loss(v, t):
        users, items = model.embed(v, t)
        return F.softplus(-(users[users_E] * (items[items_E] - items[negatives])).sum(1)).mean()

    return loss


def test_lambda_has_an_effect_and_the_clean_pass_can_be_reused():
    model = RandomMMGCN()
    loss, budget = bpr(model), Ball(0.1, "l2")
    found = {}
    for weight in (0.0, 4.0):
        rule = AscentRule(budget, 2, weight, ITEMS)
        found[weight] = general_form(loss, model.v_Nd, model.t_Nd, rule)
        leaves = [rows.clone().requires_grad_() for rows in (model.v_Nd, model.t_Nd)]
        again = general_form(loss, *leaves, rule, loss(*leaves))
        for ours, theirs in zip(again, found[weight], strict=True):
            torch.testing.assert_close(ours, theirs)
        assert all(leaf.grad is None for leaf in leaves)
    assert (found[0.0][0] - found[4.0][0]).norm() > 0.01 * found[0.0][0].norm()


def test_the_modalities_gradients_are_not_two_views_of_one_vector():
    """BACKBONE's test: the residual of the best single M with grad_t = grad_v M; and the rows are normalised, so that a
    textual row's gradient is orthogonal to it."""
    model = RandomMMGCN(edges=300)
    leaves = [rows.clone().requires_grad_() for rows in (model.v_Nd, model.t_Nd)]
    grad_v, grad_t = torch.autograd.grad(bpr(model)(*leaves), leaves)
    assert single_matrix_residual(grad_v, grad_t) > 0.1
    torch.testing.assert_close((grad_t * model.t_Nd).sum(1), torch.zeros(ITEMS).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("others_held", [False, True])
def test_a_neighbourhood_has_all_that_changes(others_held):
    model = RandomMMGCN()
    state, items_T = CleanState(OwnMMGCN.whole(model), torch.float64), torch.tensor([0, 3, 7, 21])  # 3 has no edges
    moved = Neighbourhood(state, items_T, others_held)
    z = {"visual": torch.randn(4, D).double(), "text": torch.randn(4, D).double()}
    rows = moved.rows(z)
    for index, item in enumerate(items_T.tolist()):
        v, t = model.v_Nd.clone(), model.t_Nd.clone()
        v[item], t[item] = z["visual"][index], z["text"][index]
        truth, clean = torch.cat(model.embed(v, t)), torch.cat([state.users_ud, state.items_nd])
        one = moved.targets[index]
        nodes = torch.cat([one.users_m, one.items_m + USERS])
        assert one.all_items_M.tolist() == one.items_m.tolist() and one.all_items_M[one.place_of_target] == item
        if others_held:
            assert nodes.tolist() == [USERS + item]
            continue
        assert len(nodes) < USERS + ITEMS or index == 0
        clean[nodes] = rows[one.rows]
        torch.testing.assert_close(clean, truth, rtol=1e-6, atol=1e-7)


def everything_recomputed(model: RandomMMGCN, anchors_A, item, v_row, t_row):
    """(scores of the target, k-th best score among the others), with the whole propagation."""
    v, t = model.v_Nd.clone(), model.t_Nd.clone()
    v = v.index_copy(0, torch.tensor([item]), v_row[None])
    t = t.index_copy(0, torch.tensor([item]), t_row[None])
    users, items = model.embed(v, t)
    scores = users[anchors_A] @ items.T
    own = scores[:, item]
    others = scores.clone()
    others[:, item] = -torch.inf
    return own, others.topk(K, dim=1).values[:, -1]


@pytest.mark.parametrize("loss", [Hinge(1.0), SoftRank(0.1)])
@pytest.mark.parametrize("edges", [30, 60, 400])
def test_margins_and_their_gradient_equal_those_of_recomputing_everything(loss, edges):
    model = RandomMMGCN(seed=1, edges=edges)
    anchors_A = torch.arange(0, USERS, 2)
    targets = GraphTargets.of(
        CleanState(OwnMMGCN.whole(model), torch.float64), anchors_A, torch.tensor([0, 3, 7, 21]), K, False
    )
    targets = targets.repeated(2)
    deltas = tuple(0.3 * torch.randn(8, D, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    evaluation, hits_T = targets.evaluate(deltas, loss), targets.hits(deltas)
    for index, margins in targets.margins(deltas):
        item = int(targets.items_T[index % 4])
        leaves = [delta[index].clone().requires_grad_() for delta in deltas]
        score_A, bar_A = everything_recomputed(
            model, anchors_A, item, model.v_Nd[item] + leaves[0], model.t_Nd[item] + leaves[1]
        )
        torch.testing.assert_close(margins.score_a, score_A.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(margins.bar_a, bar_A.detach(), rtol=1e-5, atol=1e-5)
        value = loss.value_and_slope((score_A - bar_A).detach())[1].detach() * (score_A - bar_A)
        truth = torch.cat(torch.autograd.grad(value.mean(), leaves))
        torch.testing.assert_close(evaluation.pull_Td[index], truth, rtol=1e-4, atol=1e-6)
        assert float(hits_T[index]) == pytest.approx(float((score_A > bar_A).double().mean()))


@pytest.mark.parametrize("others_held", [False, True])
def test_a_target_alone_is_judged_as_among_the_others(others_held):
    model = RandomMMGCN(seed=3)
    scene = GraphStage(OwnMMGCN.whole(model), K).scenes(torch.tensor([0, 3, 7]), torch.arange(USERS))[others_held]
    deltas = tuple(0.5 * torch.randn(3, D, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    moved = scene.moved(deltas, AnyContent())
    hits_T, ranks_AT = scene.hits(moved), scene.ranks([scene.clean, moved])
    assert len({*hits_T.tolist()}) > 1
    torch.testing.assert_close(hits_T, (ranks_AT[:, 1] <= K).double().mean(0))
    for index in range(3):
        alone = scene.alone(index)
        one = alone.moved(tuple(delta[index : index + 1] for delta in deltas), AnyContent())
        torch.testing.assert_close(alone.hits(one), hits_T[index : index + 1])
        torch.testing.assert_close(alone.ranks([alone.clean, one]), ranks_AT[:, :, index : index + 1])


@pytest.mark.parametrize("attack", [FGSM(), PGD(5), APGD(6, 3)], ids=lambda attack: attack.name)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("others_held", [False, True])
def test_attacks_climb_and_stay_in_the_ball(attack, norm, others_held):
    model = RandomMMGCN(seed=2)
    state = CleanState(OwnMMGCN.whole(model))
    targets = GraphTargets.of(state, torch.arange(USERS), torch.arange(0, ITEMS, 3), K, others_held)
    budget = Ball(0.5, norm)
    before = targets.evaluate(targets.zeros(), SoftRank(0.5)).value_T.mean()
    candidates = list(attack(targets, budget, torch.Generator().manual_seed(0)))
    values = torch.stack([targets.evaluate(deltas, SoftRank(0.5)).value_T for deltas in candidates])
    assert values.amax(0).mean() > before
    for deltas in candidates:
        for delta, row in zip(deltas, (targets.v_Td, targets.t_Td), strict=True):
            size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(dim=1)
            assert (size <= 0.5 * row.norm(dim=1) * (1 + 1e-5)).all()
