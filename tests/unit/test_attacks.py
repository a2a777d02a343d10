"""Attacks against autograd, the ball, and a brute-force ranking."""

import pytest
import torch

from uatmc_dist.attacks.base import Targets
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation import promotion
from uatmc_dist.models.projectors import ContentModel

ANCHORS, TARGETS, D = 40, 7, 6


def targets(seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    unit = lambda *shape: torch.nn.functional.normalize(normal(*shape), dim=1)  # noqa: E731
    return Targets(
        normal(ANCHORS, 2 * D), normal(ANCHORS) * 2, normal(TARGETS, D), unit(TARGETS, D), unit(TARGETS, D),
        normal(D, D), normal(D, D), normal(D),
    )  # fmt: skip


@pytest.mark.parametrize("margin", [1.0, 10.0])
def test_gradients_equal_autograd_for_each_target(margin):
    problem = targets()
    leaves = [torch.zeros(TARGETS, D, requires_grad=True) for _ in range(2)]
    scores_AT = problem.users_AK @ problem.items(*leaves).T
    loss_T = torch.relu(scores_AT - problem.thresholds_A[:, None] + margin).mean(0)
    truths = torch.autograd.grad(loss_T.sum(), leaves)
    ours = problem.gradients(torch.zeros(TARGETS, D), torch.zeros(TARGETS, D), margin)
    for gradient, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(gradient, truth)


@pytest.mark.parametrize("attack", [FGSM(), PGD(10), PGD(3)], ids=lambda attack: attack.name)
@pytest.mark.parametrize("epsilon", [0.025, 0.1])
def test_perturbations_stay_in_the_ball_and_raise_the_loss(attack, epsilon):
    problem = targets()
    delta_v, delta_t = attack(problem, epsilon)
    for delta, row in ((delta_v, problem.v_Td), (delta_t, problem.t_Td)):
        assert (delta.abs() <= epsilon * row.norm(dim=1, keepdim=True) * (1 + 1e-6)).all()

    def loss_T(items_TK):
        return torch.relu(problem.users_AK @ items_TK.T - problem.thresholds_A[:, None] + attack.margin).mean(0)

    assert (loss_T(problem.items(delta_v, delta_t)) > loss_T(problem.items())).all()


def test_batched_targets_equal_one_at_a_time():
    problem = targets()
    together = PGD()(problem, 0.1)
    for index in range(TARGETS):
        one = slice(index, index + 1)
        alone = PGD()(
            Targets(
                problem.users_AK, problem.thresholds_A, problem.identity_Td[one], problem.v_Td[one], problem.t_Td[one],
                problem.w_v, problem.w_t, problem.bias,
            ),
            0.1,
        )  # fmt: skip
        for ours, truth in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[one], truth)


class Model:
    """A TrainedModel without its files."""

    def __init__(self, catalog: Catalog) -> None:
        torch.manual_seed(0)
        self.dense = ContentModel(catalog.features["visual"].width, catalog.features["text"].width, [8], [8], D)
        self.dense.requires_grad_(False)
        self.users_UK = torch.randn(catalog.num_users, 2 * D)
        self.identity_Nd = torch.randn(catalog.num_items, D)
        self.v_Nd = torch.nn.functional.normalize(torch.randn(catalog.num_items, D), dim=1)
        self.t_Nd = torch.nn.functional.normalize(torch.randn(catalog.num_items, D), dim=1)

    def items(self):
        return torch.cat([self.identity_Nd, self.dense.fuse(self.v_Nd, self.t_Nd)], dim=1)


def test_hits_equal_a_ranking_of_the_perturbed_catalog(tiny_catalog):
    model = Model(Catalog(tiny_catalog))
    k = 20
    best_U, next_U = promotion._thresholds(model, k)
    anchors, items = torch.arange(0, 200, 3), torch.arange(0, 200, 9)
    problem = promotion._targets(model, items, anchors, best_U)
    moved_TK = problem.items(*PGD()(problem, 0.1))
    clean_TK = problem.items()
    limits = best_U[anchors], next_U[anchors]
    for perturbed_TK in (clean_TK, moved_TK):
        ours = promotion._hits(problem.users_AK, clean_TK, perturbed_TK, *limits)
        for index, item in enumerate(items.tolist()):
            catalog_NK = model.items().clone()
            catalog_NK[item] = perturbed_TK[index]
            scores_AN = (problem.users_AK.double() @ catalog_NK.double().T).float()
            hits = (scores_AN.topk(k, dim=1).indices == item).any(dim=1).double().mean()
            assert ours[index] == pytest.approx(float(hits))


def test_the_report_keeps_the_contract(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    config = AttackConfig(num_targets=10, seeds=[1, 2], epsilons=[0.05, 0.1], k=20)
    report = promotion.attack_model(Model(catalog), catalog, config)
    assert report == promotion.attack_model(Model(catalog), catalog, config)
    assert report["seeds"] == [1, 2] and report["protocol"] == "paper"
    assert {(r["stratum"], r["attack"], r["epsilon"]) for r in report["results"]} == {
        (stratum, attack, epsilon)
        for stratum in ("all", "cold", "popular")
        for attack in ("fgsm", "pgd")
        for epsilon in (0.05, 0.1)
    }
    for result in report["results"]:
        assert result["hit@20_after"] - result["hit@20_before"] == pytest.approx(result["promotion_gain"])
        assert result["targets"] == 20
    pgd = promotion.find_result(report["results"], "pgd", 0.1)
    assert pgd["hit@20_after"] > pgd["hit@20_before"]
