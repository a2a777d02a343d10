"""The checks of the attacks: content with attacks that work, and red where one is broken on purpose."""

from dataclasses import dataclass

import pytest

from tests.unit.random_model import RandomModel, scene
from uatmc_dist.attacks import suite
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.evaluation import checks as all_checks
from uatmc_dist.evaluation import promotion
from uatmc_dist.evaluation.scenes import Scene

NAMES = {
    "success_grows_with_epsilon",
    "iterative_beats_one_step",
    "white_box_beats_black_box_and_transfer",
    "single_anchor_is_always_won",
    "unbounded_attack_reaches_a_plateau",
    "users_give_gradient",
    "planted_item_is_found",
    "restarts_plateau",
    "never_above_certificate",
}


def checks(catalog, monkeypatch, attacks=None, **changes):
    """`attacks` are names, or attacks that stand in for the whole suite."""
    if attacks and isinstance(attacks[0], str):
        changes["attacks"] = attacks
    elif attacks:
        monkeypatch.setattr(promotion, "attacks_of", lambda config, modalities, is_linear: attacks)
    model = RandomModel(catalog.num_users, catalog.num_items, 6)
    config = AttackConfig(**{"num_targets": 20, "seeds": [1, 2], "epsilons": [0.05, 0.2], "k": 20, **changes})
    report = promotion.attack_model(model, catalog, config, model)
    return {check["check"]: check for check in report["checks"]}


@pytest.mark.parametrize("norm, budget", [("linf", "paper"), ("l2", "training")])
def test_all_pass_with_the_suite_as_it_is(tiny_catalog, monkeypatch, norm, budget):
    found = checks(Catalog(tiny_catalog), monkeypatch, norm=norm, budget=budget)
    assert found.keys() == NAMES
    assert all(check["passed"] for check in found.values()), found


class Backwards(FGSM):
    """Descends: the sign of the gradient is wrong."""

    def __call__(self, targets, budget, generator):
        for delta_v, delta_t in super().__call__(targets, budget, generator):
            yield -delta_v, -delta_t


@dataclass(frozen=True)
class Lazy(PGD):
    """Takes no step at all."""

    steps: int = 0


class Swapped(FGSM):
    """Hands each modality the other's perturbation."""

    def __call__(self, targets, budget, generator):
        for delta_v, delta_t in super().__call__(targets, budget, generator):
            yield delta_t, delta_v


@pytest.mark.parametrize("broken", [Backwards(), Lazy(), Swapped()], ids=lambda attack: type(attack).__name__)
def test_the_planted_item_is_missed_by_an_attack_that_is_broken(tiny_catalog, monkeypatch, broken):
    found = checks(Catalog(tiny_catalog), monkeypatch, [broken])
    assert not found["planted_item_is_found"]["passed"]
    assert found["single_anchor_is_always_won"]["passed"]


def test_weak_white_box_attacks_and_falling_success_are_told(tiny_catalog, monkeypatch):
    catalog = Catalog(tiny_catalog)
    square = next(attack for attack in suite.attacks_of(AttackConfig(), MODALITIES) if attack.name == "square")
    found = checks(catalog, monkeypatch, [Backwards(), square])
    assert not found["white_box_beats_black_box_and_transfer"]["passed"]
    assert not found["success_grows_with_epsilon"]["passed"]


def test_a_single_step_may_overshoot_where_scores_are_not_linear():
    attacks = suite.attacks_of(AttackConfig(attacks=["fgsm", "pgd"]), MODALITIES)

    def grows(fgsm: float, pgd: float) -> bool:
        after = {("fgsm", 0.05): 0.2, ("fgsm", 0.1): fgsm, ("pgd", 0.05): 0.2, ("pgd", 0.1): pgd}
        results = [
            {"attack": name, "stratum": "random", "epsilon": epsilon, "hit@50_after": hits}
            for (name, epsilon), hits in after.items()
        ]
        config = AttackConfig(epsilons=[0.05, 0.1], any_content=False)
        return all_checks.run_all(None, config, attacks, results, {})[0]["passed"]

    assert grows(fgsm=0.1, pgd=0.3)
    assert not grows(fgsm=0.3, pgd=0.1)


def test_an_attack_that_leaves_the_ball_is_told(tiny_catalog, monkeypatch):
    monkeypatch.setattr(
        Scene, "moved", lambda self, deltas, budget: self.targets.items(*(50 * d for d in deltas)).double()
    )
    found = checks(Catalog(tiny_catalog), monkeypatch, [FGSM()])
    assert not found["never_above_certificate"]["passed"]


def test_what_the_attacks_do_not_allow_is_not_tested_rather_than_passed(tiny_catalog, monkeypatch):
    found = checks(Catalog(tiny_catalog), monkeypatch, attacks=["exact_user"], epsilons=[0.1])
    untested = {name for name, check in found.items() if check["passed"] is None}
    assert untested == {
        "success_grows_with_epsilon",
        "iterative_beats_one_step",
        "white_box_beats_black_box_and_transfer",
        "users_give_gradient",
        "planted_item_is_found",
        "restarts_plateau",
    }


def test_the_published_loss_alone_is_blind_to_most_users(tiny_catalog, monkeypatch):
    found = checks(Catalog(tiny_catalog), monkeypatch, attacks=["fgsm", "pgd"])
    shares = found["users_give_gradient"]["measured"]
    assert shares["silent in pgd (hinge, margin 1)"] > 0.5 > shares["silent in fgsm (hinge, margin 10)"]
    assert not found["users_give_gradient"]["passed"]


@pytest.mark.parametrize("shrink", [1e-5, 1.0])
def test_zero_rows_and_users_hard_to_move_raise_no_false_alarm(tiny_catalog, monkeypatch, shrink):
    monkeypatch.setattr(RandomModel, "items", with_zero_rows(RandomModel.items, shrink))
    found = checks(Catalog(tiny_catalog), monkeypatch)
    for name in ("single_anchor_is_always_won", "planted_item_is_found"):
        assert found[name]["passed"], found[name]


def with_zero_rows(items, shrink):
    def prepared(model):
        if not hasattr(model, "_prepared"):
            model._prepared = True
            model.v_Nd[::3] = 0
            model.users_UK[:, model.v_Nd.shape[1] :] *= shrink
        return items(model)

    return prepared


def test_targets_without_any_row_are_left_out():
    model = RandomModel(40, 20, 4)
    model.v_Nd.zero_()
    model.t_Nd.zero_()
    assert len(all_checks._movable(scene(model, 5).targets)) == 0
