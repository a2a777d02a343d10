"""Checks of the attacks themselves, run with every `uatmc attack`: can its figures be trusted?

Each check says what was measured, whether it passed, and what a failure probably means. They follow what Carlini et al.
(arXiv 1902.06705) ask of an evaluation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import Budget
from uatmc_dist.attacks.apgd import APGD, SOFTNESS
from uatmc_dist.attacks.base import Attack, Targets, best_of
from uatmc_dist.attacks.exact_group import best_mean_direction
from uatmc_dist.attacks.exact_user import ExactUser
from uatmc_dist.attacks.losses import LogHinge, SoftRank
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import AttackConfig
from uatmc_dist.evaluation.scenes import Scene
from uatmc_dist.seeding import generator

TOLERANCE = 0.002
"""Of a mean Hit@k: what two attacks may differ by before one counts as the weaker one."""
_LARGE, _LARGER = 1e3, 1e4
_FOUND = 0.9
_PLANTED_REACH, _LIFT_NEEDED = 0.3, 0.8
_SINGLE_ANCHORS = 16
_ENOUGH_STARTS = 0.01
"""Share by which the last start may still raise the hits."""
_ONE_STEP = ("fgsm", "exact_group")
_FINDERS = ("fgsm", "pgd", "apgd", "exact_group")
"""Each has to find the planted item: white-box attacks on groups that may move everything and want hits alone."""


def run_all(
    scene: Scene,
    config: AttackConfig,
    attacks: Sequence[Attack],
    results: list[dict[str, Any]],
    restarts: dict[float, list[np.ndarray]],
) -> list[dict[str, Any]]:
    """Every check that the attacks that ran allow; `scene` is one with random targets, `restarts` APGD's mean hits
    after each start, scene by scene."""
    by_name = {attack.name: attack for attack in attacks}
    known = _Hits(results, config)
    found = [
        _grows(known, [attack.name for attack in attacks]),
        _not_above_certificate(results),
        _single_anchor(scene, config),
        _plateau(scene, config),
        _zero_gradients(scene, config),
        _planted(scene, config, [attack for attack in attacks if attack.name in _FINDERS]),
    ]
    if "apgd" in by_name:
        found.append(_at_least(known, "iterative_beats_one_step", ["apgd"], [n for n in _ONE_STEP if n in by_name]))
        found.append(_restarts_plateau(restarts))
    white_box = [attack.name for attack in attacks if attack.knowledge == "white box"]
    others = [attack.name for attack in attacks if attack.knowledge != "white box"]
    if white_box:
        found.append(_at_least(known, "white_box_beats_black_box_and_transfer", white_box, others))
    return found


def _check(name: str, passed: bool, measured: Any, meaning: str) -> dict[str, Any]:
    return {"check": name, "passed": bool(passed), "measured": measured, "a_failure_means": meaning}


class _Hits:
    """Mean Hit@k after an attack, by stratum and epsilon."""

    def __init__(self, results: list[dict[str, Any]], config: AttackConfig) -> None:
        self.epsilons = sorted(config.epsilons)
        self.strata = sorted({result["stratum"] for result in results})
        self._after = {
            (result["attack"], result["stratum"], result["epsilon"]): result[f"hit@{config.k}_after"]
            for result in results
        }

    def __call__(self, attack: str, stratum: str, epsilon: float) -> float:
        return self._after[attack, stratum, epsilon]


def _grows(hits: _Hits, names: list[str]) -> dict[str, Any]:
    falls = {
        name: max(
            (
                hits(name, stratum, small) - hits(name, stratum, large)
                for stratum in hits.strata
                for small, large in zip(hits.epsilons, hits.epsilons[1:], strict=False)
            ),
            default=0.0,
        )
        for name in names
    }
    worst = max(falls, key=lambda name: falls[name])
    return _check(
        "success_grows_with_epsilon",
        falls[worst] <= TOLERANCE,
        {"attack": worst, "largest_fall": max(falls[worst], 0.0)},
        "an attack does not use the room it has: gradients point the wrong way, or steps do not scale with epsilon",
    )


def _at_least(hits: _Hits, name: str, strong: list[str], weak: list[str]) -> dict[str, Any]:
    """The best of `strong` is nowhere weaker than any of `weak`."""
    gaps = {
        (weaker, stratum, epsilon): hits(weaker, stratum, epsilon) - max(hits(n, stratum, epsilon) for n in strong)
        for weaker in weak
        for stratum in hits.strata
        for epsilon in hits.epsilons
    }
    worst = max(gaps, key=lambda key: gaps[key], default=None)
    measured: dict[str, Any] = {"compared": [strong, weak]}
    if worst is not None:
        measured |= {"closest": " ".join(map(str, worst)), "ahead_by": gaps[worst]}
    return _check(
        name,
        worst is None or gaps[worst] <= TOLERANCE,
        measured,
        "the attack that knows more finds less: it is stuck (masked gradients, too few steps), its figures are too low",
    )


def _not_above_certificate(results: list[dict[str, Any]]) -> dict[str, Any]:
    above = sum(result["above_certificate"] for result in results)
    return _check(
        "never_above_certificate",
        above == 0,
        {"targets_above": above},
        "an attack left its ball, or the certificate is wrong: neither figure can be used",
    )


def _single_anchor(scene: Scene, config: AttackConfig) -> dict[str, Any]:
    """A single anchor, without bound: the closed form and APGD must both win it with every target."""
    budget = Budget(_LARGE, config.norm)
    movable = (scene.targets.reach(budget) > 0).nonzero().squeeze(1)[:_SINGLE_ANCHORS]
    won = {}
    for attack in (ExactUser(), APGD(config.apgd_steps, config.restarts)):
        shares = []
        for index in movable.tolist():
            one = slice(index, index + 1)
            alone = replace(
                scene.targets,
                users_AK=scene.targets.users_AK[one],
                thresholds_A=scene.targets.thresholds_A[one],
                surrogate=None,
            )
            shares.append(alone.hits(best_of(alone, attack(alone, budget, generator(index)))).mean())
        won[attack.name] = float(torch.stack(shares).mean()) if shares else 1.0
    return _check(
        "single_anchor_is_always_won",
        all(share == 1.0 for share in won.values()),
        won,
        "even without bound one user is not won: the attack does not reach the features that move the score",
    )


def _plateau(scene: Scene, config: AttackConfig) -> dict[str, Any]:
    """Many anchors, without bound: the share that one direction can reach, the same however far it goes."""
    attack = APGD(config.apgd_steps, config.restarts)
    reached = []
    for epsilon in (_LARGE, _LARGER):
        budget = Budget(epsilon, config.norm)
        best = best_of(scene.targets, attack(scene.targets, budget, generator(0)))
        reached.append(float(scene.targets.hits(best).mean()))
    return _check(
        "unbounded_attack_reaches_a_plateau",
        reached[1] >= reached[0] - 0.01,
        {f"hit@{config.k} at epsilon {_LARGE:g}": reached[0], f"hit@{config.k} at epsilon {_LARGER:g}": reached[1]},
        "success still falls with the room there is: numbers overflow, or the steps do not scale",
    )


def _zero_gradients(scene: Scene, config: AttackConfig) -> dict[str, Any]:
    """Share of (anchor, target) pairs below the bar that give no gradient at the start."""
    targets = scene.targets
    budget = Budget.of_attack(min(config.epsilons), config.norm, config.budget, targets.v_Td.shape[1])
    reach = targets.typical_reach(budget)
    losses: dict[str, Any] = {
        "pgd": PGD().loss,
        "apgd, soft rank": SoftRank(SOFTNESS * reach),
        "apgd, log hinge": LogHinge(SOFTNESS * reach),
    }
    shares = {}
    for name, loss in losses.items():
        silent = below = 0
        for _, excess_AT in targets.excess(targets.zeros()):
            is_below = excess_AT < 0
            silent += int(((loss.value_and_slope(excess_AT)[1] == 0) & is_below).sum())
            below += int(is_below.sum())
        shares[name] = silent / max(below, 1)
    return _check(
        "users_give_gradient",
        min(shares["apgd, soft rank"], shares["apgd, log hinge"]) < 0.01,
        shares,
        "the attack is blind to most users that it has to win, and its figures are too low",
    )


def _planted(scene: Scene, config: AttackConfig, attacks: list[Attack]) -> dict[str, Any]:
    """Thresholds are such that the best mean direction wins every anchor that it lifts at all, with room to spare, and
    nobody else can be won. An attack that works finds nearly all of them."""
    planted, budget, wanted = plant(scene.targets, config)
    shares = {
        attack.name: float(
            (planted.hits(best_of(planted, attack(planted, budget, generator(0)))) / wanted.clamp(min=1e-9)).min()
        )
        for attack in attacks
    }
    return _check(
        "planted_item_is_found",
        all(share >= _FOUND for share in shares.values()),
        {"least share of the planted anchors": shares},
        "an attack overlooks an item that is easy to promote: it is broken, whatever its other figures",
    )


def plant(targets: Targets, config: AttackConfig) -> tuple[Targets, Budget, torch.Tensor]:
    """(one target with planted thresholds, budget, the share of anchors that is to be won).

    The radius is cut so that every anchor stays within the margin of the paper's PGD, whatever the scale of the scores.
    """
    one = replace(
        targets, **{name: getattr(targets, name)[:1] for name in ("identity_Td", "v_Td", "t_Td")}, surrogate=None
    )
    budget = Budget.of_attack(max(config.epsilons), config.norm, config.budget, one.v_Td.shape[1])
    furthest = float(one.reach(budget).amax().clamp(min=1e-12))
    budget = replace(budget, epsilon=budget.epsilon * min(1.0, _PLANTED_REACH / furthest))
    clean_A = (one.users_AK @ one.items().T).squeeze(1)
    lift_A = (one.users_AK @ one.items(*best_mean_direction(one, budget)).T).squeeze(1) - clean_A
    # Who is not lifted is out of reach: going another way wins nobody instead.
    room_A = torch.where(lift_A > 0, _LIFT_NEEDED * lift_A, 2 * _PLANTED_REACH)
    planted = replace(one, thresholds_A=clean_A + room_A)
    return planted, budget, planted.hits(best_mean_direction(one, budget))


def _restarts_plateau(restarts: dict[float, list[np.ndarray]]) -> dict[str, Any]:
    """What the last start added to APGD's mean hits, at the epsilon where it added most."""
    curves = {epsilon: np.stack(of_scenes).mean(0) for epsilon, of_scenes in restarts.items()}
    gains = {
        epsilon: float((curve[-1] - curve[-2]) / max(curve[-1], 1e-9)) if len(curve) > 1 else 0.0
        for epsilon, curve in curves.items()
    }
    worst = max(gains, key=lambda epsilon: gains[epsilon])
    return _check(
        "restarts_plateau",
        gains[worst] <= _ENOUGH_STARTS,
        {"epsilon": worst, "hits after each start": curves[worst].tolist(), "last start added": gains[worst]},
        "another start would find more: raise attack.restarts, the figures are too low",
    )
