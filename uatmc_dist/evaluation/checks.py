"""Checks of the attacks themselves, run with every `uatmc attack`: can its figures be trusted?

Each check says what was measured, whether it passed, and what a failure probably means. They follow what Carlini et al.
(arXiv 1902.06705) ask of an evaluation.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import Ball, Budget
from uatmc_dist.attacks.apgd import APGD, SOFTNESS
from uatmc_dist.attacks.base import Attack, Targets, best_of
from uatmc_dist.attacks.exact_user import ExactUser
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.losses import LogHinge, Loss, SoftRank
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import AttackConfig
from uatmc_dist.evaluation.scenes import Scene
from uatmc_dist.seeding import generator

_TOLERANCE, _RELATIVE_TOLERANCE = 5e-4, 0.02
"""What the mean Hit@k of two attacks may differ by before one counts as the weaker one."""
_LARGE, _LARGER = 1e3, 1e4
_FOUND = 0.9
_PLANTED_REACH, _LIFT_NEEDED = 0.3, 0.8
_SINGLE_ANCHORS = 16
_ENOUGH_STARTS = 0.01
"""Share by which the last start may still raise the hits."""
_FEW = 0.01
_ONE_STEP, _ITERATIVE = ("fgsm", "exact_group"), ("pgd", "apgd")
_FINDERS = ("fgsm", "pgd", "apgd", "exact_group")
"""Each has to find the planted item: white-box attacks on groups that may move everything and want hits alone."""


def run_all(
    scene: Scene | None,
    config: AttackConfig,
    attacks: Sequence[Attack],
    results: list[dict[str, Any]],
    restarts: dict[float | None, list[np.ndarray]],
) -> list[dict[str, Any]]:
    """Every check; `scene` is one with random targets, `restarts` APGD's mean hits after each start, scene by scene.

    `passed` is None where the attacks that ran do not allow a check. Without a scene, for a model without linear
    fusion, what needs closed forms is left out, and a single step may overshoot where it has more room.
    """
    names = [attack.name for attack in attacks]
    hits = _Hits(results, config)
    white_box = [attack.name for attack in attacks if attack.knowledge == "white box"]
    others = [attack.name for attack in attacks if attack.knowledge != "white box"]
    iterative, one_step = ([name for name in names if name in kind] for kind in (_ITERATIVE, _ONE_STEP))
    return [
        _grows(hits, names if scene is not None else [name for name in names if name not in one_step]),
        _at_least(hits, "iterative_beats_one_step", iterative, one_step),
        _at_least(hits, "white_box_beats_black_box_and_transfer", white_box, others),
        _restarts_plateau(restarts),
    ] + (
        []
        if scene is None
        else [
            _single_anchor(scene, config),
            _plateau(scene, config),
            _zero_gradients(scene, config, names),
            _planted(scene, config, [attack for attack in attacks if attack.name in _FINDERS]),
            _not_above_certificate(results),
        ]
    )


def _check(name: str, passed: bool | None, measured: dict[str, Any], meaning: str) -> dict[str, Any]:
    passed = None if passed is None else bool(passed)
    return {"check": name, "passed": passed, "measured": measured, "a_failure_means": meaning}


class _Hits:
    """Mean Hit@k after an attack, by stratum and epsilon."""

    def __init__(self, results: list[dict[str, Any]], config: AttackConfig) -> None:
        self.epsilons = sorted(config.epsilons)
        self.budgets: list[float | None] = [*self.epsilons, *([None] if config.any_content else [])]
        """By epsilon; None: any content, which is neither more nor less than a ball."""
        self.strata = sorted({result["stratum"] for result in results})
        self._after = {
            (result["attack"], result["stratum"], result["epsilon"]): result[f"hit@{config.k}_after"]
            for result in results
        }

    def __call__(self, attack: str, stratum: str, epsilon: float | None) -> float:
        return self._after[attack, stratum, epsilon]


def _name(epsilon: float | None) -> str:
    return "any content" if epsilon is None else f"epsilon {epsilon:g}"


def _is_less(ours: float, theirs: float) -> bool:
    """By more than a difference that does not count."""
    return ours < theirs - max(_TOLERANCE, _RELATIVE_TOLERANCE * theirs)


def _grows(hits: _Hits, names: list[str]) -> dict[str, Any]:
    steps = {
        f"{name}, {stratum}, {large:g}": (hits(name, stratum, large), hits(name, stratum, small))
        for name in names
        for stratum in hits.strata
        for small, large in pairwise(hits.epsilons)
    }
    worst = min(steps, key=lambda key: steps[key][0] - steps[key][1], default=None)
    return _check(
        "success_grows_with_epsilon",
        all(not _is_less(*pair) for pair in steps.values()) if steps else None,
        {} if worst is None else {"least growth": worst, "hits": steps[worst][0], "with less room": steps[worst][1]},
        "an attack does not use the room it has: gradients point the wrong way, or steps do not scale with epsilon",
    )


def _at_least(hits: _Hits, name: str, strong: list[str], weak: list[str]) -> dict[str, Any]:
    """The best of `strong` is nowhere weaker than any of `weak`."""
    pairs = {
        f"{weaker}, {stratum}, {_name(epsilon)}": (
            max((hits(stronger, stratum, epsilon) for stronger in strong), default=0.0),
            hits(weaker, stratum, epsilon),
        )
        for weaker in weak
        for stratum in hits.strata
        for epsilon in hits.budgets
    }
    worst = min(pairs, key=lambda key: pairs[key][0] - pairs[key][1], default=None)
    measured: dict[str, Any] = {"strong": strong, "weak": weak}
    if worst is not None:
        measured |= {"closest": worst, "strong has": pairs[worst][0], "weak has": pairs[worst][1]}
    return _check(
        name,
        all(not _is_less(*pair) for pair in pairs.values()) if strong and weak else None,
        measured,
        "the attack that knows more finds less: it is stuck (masked gradients, too few steps), its figures are too low",
    )


def _not_above_certificate(results: list[dict[str, Any]]) -> dict[str, Any]:
    above = sum(result["above_certificate"] for result in results)
    return _check(
        "never_above_certificate",
        above == 0,
        {"targets above": above},
        "an attack left its ball, or the certificate is wrong: neither figure can be used",
    )


def _movable(targets: Targets) -> Targets:
    """The targets that have a row of every modality that there is: a zero row has no room."""
    of_modalities = [rows_Td.any(dim=1) for rows_Td in (targets.v_Td, targets.t_Td) if rows_Td.any()]
    has_rows_T = torch.stack(of_modalities).all(dim=0) if of_modalities else torch.zeros(len(targets), dtype=torch.bool)
    return targets.chosen(has_rows_T.cpu().nonzero().squeeze(1))


def _single_anchor(scene: Scene, config: AttackConfig) -> dict[str, Any]:
    """A single anchor, with twice the room that it takes: the closed form and APGD must win it with every target."""
    targets = _movable(scene.targets)
    unit_A = targets.reach(Ball(1.0, config.norm))
    anchors = (unit_A.cpu() > 0).nonzero().squeeze(1)[:_SINGLE_ANCHORS].tolist() if len(targets) else []
    won: dict[str, list[float]] = {}
    for anchor in anchors:
        alone = targets.alone(anchor)
        needed = max(float(-excess_aT.amin()) for _, excess_aT in alone.excess(alone.zeros()))
        budget = Ball(2 * max(needed, 0.0) / float(unit_A[anchor]) + 1.0, config.norm)
        for attack in (ExactUser(), APGD(config.apgd_steps, config.restarts)):
            best = best_of(alone, attack(alone, budget, generator(anchor)))
            won.setdefault(attack.name, []).append(float(alone.hits(best).mean()))
    return _check(
        "single_anchor_is_always_won",
        all(share == 1.0 for shares in won.values() for share in shares) if won else None,
        {f"{name} wins": float(np.mean(shares)) for name, shares in won.items()},
        "not even one user is won, with all the room it takes: the attack does not reach the features that matter",
    )


def _plateau(scene: Scene, config: AttackConfig) -> dict[str, Any]:
    """Many anchors, without bound: the share that one direction can reach, the same however far it goes."""
    attack = APGD(config.apgd_steps, config.restarts)
    reached = []
    for epsilon in (_LARGE, _LARGER):
        best = best_of(scene.targets, attack(scene.targets, Ball(epsilon, config.norm), generator(0)))
        reached.append(float(scene.targets.hits(best).mean()))
    return _check(
        "unbounded_attack_reaches_a_plateau",
        not _is_less(reached[1], reached[0]),
        {
            f"hit@{config.k} at epsilon {epsilon:g}": hit
            for epsilon, hit in zip((_LARGE, _LARGER), reached, strict=True)
        },
        "success still falls with the room there is: numbers overflow, or the steps do not scale",
    )


def _zero_gradients(scene: Scene, config: AttackConfig, names: Sequence[str]) -> dict[str, Any]:
    """Share of (anchor, target) pairs below the bar that give no gradient at the start, for each loss of the attacks
    that ran; it is enough that one of them sees the users."""
    targets = scene.targets
    budget = Ball.of_attack(max(config.epsilons), config.norm, config.budget, targets.v_Td.shape[1])
    scale = SOFTNESS * targets.typical_reach(budget)
    losses: dict[tuple[str, str], Loss] = {
        ("fgsm", "hinge, margin 10"): FGSM.loss,
        ("pgd", "hinge, margin 1"): PGD.loss,
        ("apgd", "soft rank"): SoftRank(scale),
        ("apgd", "log hinge"): LogHinge(scale),
    }
    shares = {}
    for (name, label), loss in losses.items():
        if name not in names:
            continue
        counts = targets.v_Td.new_zeros(2, dtype=torch.int64)
        for _, excess_aT in targets.excess(targets.zeros()):
            is_below = excess_aT < 0
            is_silent = (loss.value_and_slope(excess_aT)[1] == 0) & is_below
            counts += torch.stack([is_silent.sum(), is_below.sum()])
        silent, below = targets.anchors.total(counts).tolist()
        shares[f"silent in {name} ({label})"] = silent / max(below, 1)
    return _check(
        "users_give_gradient",
        min(shares.values()) < _FEW if shares else None,
        shares,
        "every attack is blind to users that it has to win, and the figures are too low",
    )


def _planted(scene: Scene, config: AttackConfig, attacks: Sequence[Attack]) -> dict[str, Any]:
    """Thresholds are such that the best mean direction wins every anchor that it lifts at all, with room to spare, and
    nobody else can be won. An attack that works finds nearly all of them."""
    targets = _movable(scene.targets)
    shares = {}
    if len(targets):
        planted, budget, wanted = plant(targets, config)
        for attack in attacks if wanted > 0 else []:
            best = best_of(planted, attack(planted, budget, generator(0)))
            shares[f"{attack.name} finds"] = float(planted.hits(best)) / wanted
    return _check(
        "planted_item_is_found",
        all(share >= _FOUND for share in shares.values()) if shares else None,
        shares,
        "an attack overlooks an item that is easy to promote: it is broken, whatever its other figures",
    )


def plant(targets: Targets, config: AttackConfig) -> tuple[Targets, Budget, float]:
    """(the first target with planted thresholds, budget, the share of anchors that is to be won).

    The radius is cut so that every anchor stays within the margin of the paper's PGD, whatever the scale of the scores.
    """
    one = targets.chosen(torch.tensor([0]))
    budget = Ball.of_attack(max(config.epsilons), config.norm, config.budget, one.v_Td.shape[1])
    furthest = float(one.reach(budget).amax().clamp(min=1e-12))
    budget = replace(budget, epsilon=budget.epsilon * min(1.0, _PLANTED_REACH / furthest))
    clean_a = (one.users_aK @ one.items().T).squeeze(1)
    lift_a = (one.users_aK @ one.items(*one.best_mean_direction(budget)).T).squeeze(1) - clean_a
    # Who is not lifted is out of reach: going another way wins nobody instead.
    room_a = torch.where(lift_a > 0, _LIFT_NEEDED * lift_a, 2 * _PLANTED_REACH)
    planted = replace(one, thresholds_a=clean_a + room_a)
    return planted, budget, float(planted.hits(one.best_mean_direction(budget)))


def _restarts_plateau(restarts: dict[float | None, list[np.ndarray]]) -> dict[str, Any]:
    """What the last start added to APGD's mean hits, at the epsilon where it added most."""
    curves = {epsilon: np.stack(of_scenes).mean(0) for epsilon, of_scenes in restarts.items()}
    gains = {
        epsilon: float((curve[-1] - curve[-2]) / max(curve[-1], 1e-9))
        for epsilon, curve in curves.items()
        if len(curve) > 1
    }
    worst = max(gains, key=lambda epsilon: gains[epsilon], default=None)
    return _check(
        "restarts_plateau",
        gains[worst] <= _ENOUGH_STARTS if gains else None,
        {f"hits after each start, {_name(worst)}": curves[worst].tolist()} if gains else {},
        "another start would find more: raise attack.restarts, the figures are too low",
    )
