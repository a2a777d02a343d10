"""Attacks against autograd, the ball, closed forms, and a brute-force ranking."""

import itertools
import textwrap

import pytest
import torch

from conftest import ROOT
from tests.unit.random_model import BUDGETS, RandomModel, scene
from uatmc_dist.adversary.budget import Ball
from uatmc_dist.attacks.apgd import APGD
from uatmc_dist.attacks.base import best_of
from uatmc_dist.attacks.coordinated import _hvp
from uatmc_dist.attacks.exact_group import ExactGroup
from uatmc_dist.attacks.exact_user import ExactUser
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.losses import Hinge, LogHinge, SoftRank
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.attacks.suite import attacks_of
from uatmc_dist.attacks.transfer import Transfer
from uatmc_dist.config import ATTACKS, AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation import promotion
from uatmc_dist.evaluation.scenes import draw_ids, strata

USERS, ITEMS, D, K = 60, 130, 6, 20
LOSSES = {"hinge": Hinge(1.0), "far hinge": Hinge(10.0), "soft rank": SoftRank(0.7), "log hinge": LogHinge(0.3)}
SUITE = {attack.name: attack for attack in attacks_of(AttackConfig(apgd_steps=10, queries=30), MODALITIES)}


def problem(seed=0, surrogate=None):
    return scene(RandomModel(USERS, ITEMS, D, seed), K, range(0, USERS, 2), range(0, ITEMS, 9), surrogate)


def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_values_and_gradients_equal_autograd_for_each_target(loss):
    targets = problem().targets
    leaves = [0.1 * torch.randn(rows.shape, generator=generator()) for rows in (targets.v_Td, targets.t_Td)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    excess_AT = targets.users_aK @ targets.items(*leaves).T - targets.thresholds_a[:, None]
    value_T = loss.value_and_slope(excess_AT)[0].mean(0)
    truths = torch.autograd.grad(value_T.sum(), leaves)
    seen = targets.evaluate((leaves[0].detach(), leaves[1].detach()), loss)
    torch.testing.assert_close(seen.value_T, value_T.detach())
    torch.testing.assert_close(seen.hits_T, (excess_AT > 0).float().mean(0))
    for weight, truth in zip((targets.w_v, targets.w_t), truths, strict=True):
        torch.testing.assert_close(seen.pull_Td @ weight, truth, rtol=1e-4, atol=1e-5)


def test_losses_without_a_dead_zone_give_gradient_far_below_the_threshold():
    far = torch.tensor([-50.0])
    assert Hinge(10.0).value_and_slope(far)[1] == 0
    assert SoftRank(1.0).value_and_slope(far)[1] > 0 and LogHinge(1.0).value_and_slope(far)[1] > 0


def test_the_product_with_the_hessian_equals_double_differentiation():
    targets, loss = problem().targets, SoftRank(0.7)
    start = targets.zeros()
    omega_Td = torch.randn(targets.v_Td.shape, generator=generator())
    content_Td = torch.zeros_like(targets.v_Td, requires_grad=True)
    items_TK = targets.items() + torch.nn.functional.pad(content_Td, (D, 0))
    value = loss.value(targets.users_aK @ items_TK.T - targets.thresholds_a[:, None]).mean(0).sum()
    (first,) = torch.autograd.grad(value, content_Td, create_graph=True)
    (truth,) = torch.autograd.grad((first * omega_Td).sum(), content_Td)
    torch.testing.assert_close(_hvp(targets, start, loss, omega_Td), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget_of", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("name", SUITE)
def test_perturbations_stay_in_the_ball_and_do_not_touch_the_model(name, budget_of):
    model = RandomModel(USERS, ITEMS, D)
    drawn = scene(model, K, items=range(0, ITEMS, 9), surrogate=problem(1).targets if name == "transfer" else None)
    before = [tensor.clone() for tensor in (model.users_UK, model.identity_Nd, *model.dense.parameters())]
    budget = budget_of(0.1, D)
    candidates = list(SUITE[name](drawn.targets, budget, generator()))
    assert candidates
    for deltas in candidates:
        for delta, row in zip(deltas, (drawn.targets.v_Td, drawn.targets.t_Td), strict=True):
            size = delta.norm(dim=1) if budget.norm == "l2" else delta.abs().amax(dim=1)
            assert (size <= budget.epsilon * row.norm(dim=1) * (1 + 1e-5)).all()
    only = {"visual_only": 1, "text_only": 0}.get(name)
    assert only is None or all(not deltas[only].any() for deltas in candidates)
    after = (model.users_UK, model.identity_Nd, *model.dense.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_budgets_differ_by_the_square_root_of_the_width_in_l2():
    assert Ball.of_attack(0.1, "l2", "training", 64) == Ball(0.1, "l2")
    assert Ball.of_attack(0.1, "l2", "paper", 64).epsilon == pytest.approx(0.8)
    assert Ball.of_attack(0.1, "linf", "paper", 64) == Ball.of_attack(0.1, "linf", "training", 64)


def test_fgsm_and_pgd_follow_the_published_protocol_step_by_step():
    targets, epsilon = problem().targets, 0.1

    def ascend(deltas, margin, step):
        leaves = [delta.clone().requires_grad_() for delta in deltas]
        excess_AT = targets.users_aK @ targets.items(*leaves).T - targets.thresholds_a[:, None]
        gradients = torch.autograd.grad(torch.relu(excess_AT + margin).mean(0).sum(), leaves)
        return [
            (delta + step * gradient.sign()).clamp(-epsilon, epsilon)
            for delta, gradient in zip(deltas, gradients, strict=True)
        ]

    truth = list(targets.zeros())
    (ours,) = FGSM()(targets, Ball(epsilon, "linf"), generator())
    torch.testing.assert_close(list(ours), ascend(truth, 10.0, epsilon), rtol=1e-5, atol=1e-6)
    for _ in range(10):
        truth = ascend(truth, 1.0, 1.25 * epsilon / 10)
    (ours,) = PGD(10)(targets, Ball(epsilon, "linf"), generator())
    torch.testing.assert_close(list(ours), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "exact_group", "exact_user", "coordinated", "anti_aligned"])
def test_batched_targets_equal_one_at_a_time(name):
    together = list(SUITE[name](problem().targets, Ball(0.1, "l2"), generator()))
    for index, item in enumerate(range(0, ITEMS, 9)):
        alone = scene(RandomModel(USERS, ITEMS, D), K, range(0, USERS, 2), [item]).targets
        for ours, truth in zip(together, SUITE[name](alone, Ball(0.1, "l2"), generator()), strict=True):
            torch.testing.assert_close(ours[0][index : index + 1], truth[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_beats_the_others_on_average(norm):
    drawn, budget = problem(), Ball(0.3, norm)
    hits = {}
    for name in ("fgsm", "pgd", "apgd", "square"):
        best = best_of(drawn.targets, SUITE[name](drawn.targets, budget, generator()))
        hits[name] = float(drawn.hits(drawn.moved(best, budget)).mean())
    assert max(hits, key=lambda name: hits[name]) == "apgd"
    assert hits["apgd"] > float(drawn.hits(drawn.clean_TK).mean())


def test_exact_user_is_the_optimum_over_all_corners_of_the_box():
    dim = 3
    drawn = scene(RandomModel(1, 40, dim), 5)
    (deltas,) = ExactUser()(drawn.targets, Ball(0.2, "linf"), generator())
    ours = (drawn.targets.users_aK @ drawn.targets.items(*deltas).T).squeeze(0)
    corners = 0.2 * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2 * dim)))
    scores = torch.stack([drawn.targets.users_aK @ drawn.targets.items(c[:dim], c[dim:]).T for c in corners])
    torch.testing.assert_close(ours, scores.amax(0).squeeze(0), rtol=1e-5, atol=1e-5)


def test_exact_group_has_the_best_mean_margin():
    drawn, budget = problem(), Ball(0.2, "l2")

    def mean_score(deltas):
        return (drawn.targets.users_aK @ drawn.targets.items(*deltas).T).mean(0)

    (best,) = ExactGroup()(drawn.targets, budget, generator())
    for name in ("fgsm", "pgd", "apgd", "square", "coordinated"):
        for deltas in SUITE[name](drawn.targets, budget, generator()):
            assert (mean_score(deltas) <= mean_score(best) + 1e-5).all()


def test_transfer_replays_what_worked_best_on_the_surrogate():
    surrogate = problem(seed=3).targets
    attack, budget = APGD(6, 2), Ball(0.2, "linf")
    (replayed,) = Transfer(attack)(problem(surrogate=surrogate).targets, budget, generator())
    truth = best_of(surrogate, attack(surrogate, budget, generator()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(replayed, truth, strict=True))
    assert not list(Transfer(attack)(problem().targets, budget, generator()))


def test_hits_and_ranks_equal_a_ranking_of_the_perturbed_catalog():
    model = RandomModel(USERS, ITEMS, D)
    items = torch.arange(0, ITEMS, 9)
    drawn, budget = scene(model, K, items=items), Ball(0.3, "linf")
    moved_TK = drawn.moved(best_of(drawn.targets, PGD()(drawn.targets, budget, generator())), budget)
    assert drawn.bars.ks == (10, 20, 50, 100)
    ranks = drawn.mean_ranks([drawn.clean_TK, moved_TK])
    hits = drawn.hits_by_length([drawn.clean_TK, moved_TK])
    for embeddings_TK, rank_T, hits_JT in zip((drawn.clean_TK, moved_TK), ranks, hits, strict=True):
        assert torch.equal(hits_JT[drawn.bars.ks.index(K)], drawn.hits(embeddings_TK))
        for index, item in enumerate(items.tolist()):
            catalog_NK = model.items().double()
            catalog_NK[item] = embeddings_TK[index]
            scores_AN = (model.users_UK.double() @ catalog_NK.T).float()
            assert rank_T[index] == pytest.approx(
                float(1 + (scores_AN > scores_AN[:, item, None]).double().sum(1).mean())
            )
            for column, k in enumerate(drawn.bars.ks):
                truth = (scores_AN.topk(k, dim=1).indices == item).any(dim=1).double().mean()
                assert hits_JT[column, index] == pytest.approx(float(truth))


def test_the_report_keeps_the_contract(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    model, twin = (RandomModel(catalog.num_users, catalog.num_items, D) for _ in range(2))
    twin.users_UK += 0.3 * torch.randn(twin.users_UK.shape, generator=generator())
    config = AttackConfig(num_targets=10, seeds=[1, 2], epsilons=[0.05, 0.1], k=20, apgd_steps=10, queries=20)
    report = promotion.attack_model(model, catalog, config, twin)  # type: ignore[arg-type]
    again = promotion.attack_model(model, catalog, config, twin)  # type: ignore[arg-type]
    for result in (found for one in (report, again) for kind in ("results", "any_content") for found in one[kind]):
        result.pop("seconds")
    assert report == again
    assert (
        report["seeds"] == [1, 2]
        and report["protocol"] == "paper, num_targets=10, k=20"
        and report["threat_model"]["budget"] == "paper"
    )
    assert {(r["stratum"], r["attack"], r["epsilon"]) for r in report["results"]} == set(
        itertools.product(("random", "cold", "popular"), (*ATTACKS, "strongest"), (0.05, 0.1))
    )
    assert {(r["stratum"], r["attack"], r["epsilon"]) for r in report["any_content"]} == set(
        itertools.product(("random", "cold", "popular"), (*ATTACKS, "strongest"), (None,))
    )
    for result in (*report["results"], *report["any_content"]):
        assert result["hit@20_after"] - result["hit@20_before"] == pytest.approx(result["promotion_gain"])
        assert result["targets"] == 20 and 0 <= result["promoted_share"] <= 1
        assert result["mean_rank_after"] - result["mean_rank_before"] == pytest.approx(result["mean_rank_change"])
        for k in (10, 20, 50, 100):
            assert 0 <= result[f"hit@{k}_before"] <= 1 and 0 <= result[f"hit@{k}_after"] <= 1
        assert result["hit@20_after"] <= result["certified_hit@20"] and result["above_certificate"] == 0
        of_its_kind = report["any_content" if result["epsilon"] is None else "results"]
        strongest = promotion.find_result(of_its_kind, "strongest", result["epsilon"], result["stratum"])
        assert result["hit@20_after"] <= strongest["hit@20_after"]
    pgd = promotion.find_result(report["results"], "pgd", 0.1)
    assert pgd["hit@20_after"] > pgd["hit@20_before"] and pgd["mean_rank_change"] < 0


def test_transfer_is_left_out_without_a_surrogate_and_refused_from_other_features(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    model = RandomModel(catalog.num_users, catalog.num_items, D)
    config = AttackConfig(num_targets=3, seeds=[1], epsilons=[0.1], k=20, attacks=["fgsm", "transfer"])
    report = promotion.attack_model(model, catalog, config)  # type: ignore[arg-type]
    assert {result["attack"] for result in report["results"]} == {"fgsm", "strongest"}
    only = config.model_copy(update={"attacks": ["transfer"]})
    with pytest.raises(UserError, match="only transfer"):
        promotion.attack_model(model, catalog, only)  # type: ignore[arg-type]
    other = RandomModel(catalog.num_users, catalog.num_items, D, seed=1)
    with pytest.raises(UserError, match=r"attack\.surrogate"):
        promotion.attack_model(model, catalog, config, other)  # type: ignore[arg-type]


def test_strata_and_draws(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    pools = strata(catalog)
    _, bought = catalog.split("train")
    sales = {name: (bought[:, None] == pool).any(1).mean() for name, pool in pools.items()}
    assert sales["random"] == 1 and sales["cold"] < 0.2 and sales["popular"] > 0.05
    config = AttackConfig(num_targets=1000, anchor_share=0.4)
    items, anchors = draw_ids(config, 1, "cold", pools["cold"], catalog.num_users)
    assert len(items) == len(pools["cold"]) == len(set(items.tolist()))
    assert len(anchors) == len(set(anchors.tolist())) == round(0.4 * catalog.num_users)
    other_items, other_anchors = draw_ids(config, 2, "cold", pools["cold"], catalog.num_users)
    assert other_anchors.tolist() != anchors.tolist() and other_items.tolist() != items.tolist()


def test_the_worked_example_of_contributing_is_an_attack():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = text.split("mean_pull.py`:\n\n")[1].split("\n2. ")[0]
    names: dict = {}
    exec(textwrap.dedent(example), names)
    drawn, budget = scene(RandomModel(60, 40, 5), 5), Ball(0.5, "l2")
    (deltas,) = names["MeanPull"]()(drawn.targets, budget, torch.Generator())
    assert drawn.hits(drawn.moved(deltas, budget)).mean() > drawn.hits(drawn.clean).mean()
