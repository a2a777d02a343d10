"""Promotion attacks on a trained model (docs/algorithm.md, section 6): every attack of the suite, at every epsilon.

For each seed and stratum: target items, anchor users; each target is attacked for itself, all of them batched.
Hit@k is the share of anchors that have the target among their k best items, nothing masked.

    T  targets    A  anchors    S  seeds x targets
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import AnyContent, Ball, Budget
from uatmc_dist.attacks.base import Attack, best_by
from uatmc_dist.attacks.suite import attacks_of
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation import checks
from uatmc_dist.evaluation.kept import KeptParts
from uatmc_dist.evaluation.scenes import Scene, draw_ids, strata
from uatmc_dist.evaluation.stage import AnyScene, Stage, stage_of
from uatmc_dist.evaluation.tallies import Stratum, Tally
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.seeding import generator

OTHERS = "users and items within three hops move along, and so do the bars; names that end in _held: nobody else moves"
STRONGEST = "strongest"
"""For each target the attack that won most anchors."""


def attack_model(
    model: LinearModel,
    catalog: Catalog,
    config: AttackConfig,
    surrogate: LinearModel | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    kept: KeptParts | None = None,
) -> dict[str, Any]:
    """Attacks at every epsilon, in every stratum; returns what attack.json holds, checks included.

    `surrogate` is the undefended model of the transfer attack, which is left out without one. Raises UserError for a
    model without content, and where none of the attacks can be made on it.
    """
    attacks = possible_attacks(config, model.dense, model.is_linear, surrogate is not None)
    if surrogate is not None:
        rows = None if surrogate.dense is None else (surrogate.v_Nd, surrogate.t_Nd)
        check_surrogate((model.v_Nd, model.t_Nd), rows)
    stage = stage_of(model, config.k, surrogate)
    assert model.dense is not None
    made_on = None if surrogate is None else surrogate.path
    threat_model = threat_model_of(config, model.dense.modalities, model.v_Nd.shape[1], model.is_linear, made_on)
    return attack_on(stage, catalog, config, attacks, threat_model, progress, kept or KeptParts(None))


def possible_attacks(config: AttackConfig, dense: Any, is_linear: bool, has_surrogate: bool) -> list[Attack]:
    """Those of the configuration that can be made on a model with this dense part. UserError where none can."""
    if dense is None:
        raise UserError("this model has no content (model.content=false), so there is nothing to perturb")
    possible = attacks_of(config, dense.modalities, is_linear)
    if not possible:
        why = "need two modalities, and this model has one" if is_linear else "need linear fusion"
        raise UserError(f"attack.attacks: {', '.join(config.attacks)} {why}; give others")
    attacks = [attack for attack in possible if attack.name != "transfer" or has_surrogate]
    if not attacks:
        raise UserError("attack.attacks: only transfer, and no undefended run to make it on; give attack.surrogate=RUN")
    return attacks


def attack_on(
    stage: Stage,
    catalog: Catalog,
    config: AttackConfig,
    attacks: list[Attack],
    threat_model: dict[str, Any],
    progress: Callable[[int, int], None],
    kept: KeptParts,
) -> dict[str, Any]:
    """What `attack_model` returns. `progress(done, total)` counts seeds x strata; what `kept` has is not done again.
    Collective where the stage is shared out over ranks."""
    found: dict[str, Stratum] = {}
    pools = strata(catalog)

    def scenes(seed: int, stratum: str) -> Sequence[AnyScene]:
        return stage.scenes(*draw_ids(config, seed, stratum, pools[stratum], catalog.num_users))

    def attacked(seed: int, stratum: str) -> dict[str, Any]:
        of_seed = Stratum()
        for scene in scenes(seed, stratum):
            _attack_scene(scene, config, attacks, seed, of_seed)
        return of_seed.to_json()

    for done, (seed, stratum) in enumerate((seed, stratum) for seed in config.seeds for stratum in pools):
        of_seed = kept.found([seed, stratum], partial(attacked, seed, stratum))
        found.setdefault(stratum, Stratum()).extend(Stratum.from_json(of_seed))
        progress(done + 1, len(config.seeds) * len(pools))
    first_scene = scenes(config.seeds[0], next(iter(pools)))[0]
    restarts: dict[float | None, list[np.ndarray]] = {}
    for group in found.values():
        for epsilon, of_scenes in group.restarts.items():
            restarts.setdefault(epsilon, []).extend(of_scenes)
    results = [
        _result(stratum, name, epsilon, config, group, tally)
        for stratum, group in found.items()
        for (name, epsilon), tally in group.tallies.items()
    ]
    return {
        "protocol": _protocol(config),
        "threat_model": threat_model,
        "k": config.k,
        "ks": list(stage.ks),
        "epsilons": config.epsilons,
        "seeds": config.seeds,
        "options": config.model_dump(mode="json"),
        "targets": {name: min(config.num_targets, len(items)) for name, items in pools.items()},
        "results": [result for result in results if result["epsilon"] is not None],
        "any_content": [result for result in results if result["epsilon"] is None],
        "checks": checks.run_all(
            first_scene if isinstance(first_scene, Scene) else None, config, attacks, results, restarts
        ),
    }


def find_result(
    results: Sequence[dict[str, Any]], attack: str, epsilon: float | None, stratum: str = "random"
) -> dict[str, Any]:
    """The entry of attack.json's results for one attack, epsilon and stratum; of its any_content without an epsilon.
    KeyError where there is none."""
    for result in results:
        if (result["attack"], result["epsilon"], result["stratum"]) == (attack, epsilon, stratum):
            return result
    raise KeyError((attack, epsilon, stratum))


def _attack_scene(
    scene: AnyScene,
    config: AttackConfig,
    attacks: list[Attack],
    seed: int,
    found: Stratum,
) -> None:
    """Adds what every attack does within every budget."""
    targets, suffix = scene.targets, scene.suffix
    moved: dict[tuple[str, float | None], Any] = {}
    budgets = _budgets(config, targets.v_Td.shape[1])
    for index, attack in enumerate(attacks):
        for epsilon, budget in budgets.items():
            tally = found.tallies.setdefault((attack.name + suffix, epsilon), Tally())
            start = time.monotonic()
            candidates = list(attack(targets, budget, generator(seed, index)))
            hits_CT = torch.stack([scene.hits(scene.moved(deltas, budget)) for deltas in candidates])
            hits_CT.cpu()  # so that the device is waited for here, not in what is timed next
            tally.seconds += time.monotonic() - start
            moved[attack.name + suffix, epsilon] = scene.moved(best_by(candidates, hits_CT), budget)
            if attack.name + suffix == "apgd":
                by_start = hits_CT.view(config.restarts, -1, len(targets)).amax(1).cummax(0).values
                found.restarts.setdefault(epsilon, []).append(by_start.mean(1).double().cpu().numpy())
    for epsilon, budget in budgets.items():
        certified_T = scene.certified_hits(budget)
        if certified_T is not None:
            found.certified.setdefault(epsilon, []).append(certified_T.cpu().numpy())
        found.tallies.setdefault((STRONGEST + suffix, epsilon), Tally())
    embeddings = [scene.clean, *moved.values()]
    ranks, hits = (
        of_each.cpu().numpy() for of_each in (scene.mean_ranks(embeddings), scene.hits_by_length(embeddings))
    )
    if not suffix:
        found.rank_before.append(ranks[0])
    for key, rank_T in zip(moved, ranks[1:], strict=True):
        found.tallies[key].rank_after.append(rank_T)
    for column, k in enumerate(scene.ks):
        if not suffix:
            found.before.setdefault(k, []).append(hits[0, column])
        for key, hits_JT in zip(moved, hits[1:], strict=True):
            found.tallies[key].after.setdefault(k, []).append(hits_JT[column])
    for epsilon in budgets:
        _add_strongest(found, [attack.name for attack in attacks], suffix, epsilon, scene.k)


def _budgets(config: AttackConfig, dim: int) -> dict[float | None, Budget]:
    """By epsilon; None: any content."""
    balls: dict[float | None, Budget] = {
        epsilon: Ball.of_attack(epsilon, config.norm, config.budget, dim) for epsilon in config.epsilons
    }
    return balls | ({None: AnyContent()} if config.any_content else {})


def _add_strongest(found: Stratum, names: list[str], suffix: str, epsilon: float | None, k: int) -> None:
    """Of the newest scene: each target as the attack left it that won most anchors at k."""
    tallies = [found.tallies[name + suffix, epsilon] for name in names]
    winner_T = np.stack([tally.after[k][-1] for tally in tallies]).argmax(0)
    everyone = np.arange(len(winner_T))
    strongest = found.tallies[STRONGEST + suffix, epsilon]
    strongest.rank_after.append(np.stack([tally.rank_after[-1] for tally in tallies])[winner_T, everyone])
    for length in tallies[0].after:
        after = np.stack([tally.after[length][-1] for tally in tallies])[winner_T, everyone]
        strongest.after.setdefault(length, []).append(after)
    strongest.seconds = sum(tally.seconds for tally in tallies)


def _result(
    stratum: str, attack: str, epsilon: float | None, config: AttackConfig, group: Stratum, tally: Tally
) -> dict[str, Any]:
    k = config.k
    before, after = (np.concatenate(hits[k]) for hits in (group.before, tally.after))
    certified = np.concatenate(group.certified[epsilon]) if group.certified else None
    rank_before, rank_after = np.concatenate(group.rank_before), np.concatenate(tally.rank_after)
    gain = float(after.mean() - before.mean())
    hits = {}
    for length in group.before:
        hits[f"hit@{length}_before"] = float(np.concatenate(group.before[length]).mean())
        hits[f"hit@{length}_after"] = float(np.concatenate(tally.after[length]).mean())
    return {
        "stratum": stratum,
        "attack": attack,
        "epsilon": epsilon,
        **hits,
        "promotion_gain": gain,
        "relative_gain": gain / float(before.mean()) if before.mean() > 0 else None,
        "promoted_share": float((after > before).mean()),
        "mean_rank_before": float(rank_before.mean()),
        "mean_rank_after": float(rank_after.mean()),
        "mean_rank_change": float((rank_after - rank_before).mean()),
        f"hit@{k}_after_by_seed": [float(of_seed.mean()) for of_seed in tally.after[k]],
        f"certified_hit@{k}": None if certified is None else float(certified.mean()),
        "above_certificate": None if certified is None else int((after > certified).sum()),
        "targets": len(after),
        "seconds": round(tally.seconds, 3),
    }


def check_surrogate(of_model: Sequence[torch.Tensor], of_surrogate: Sequence[torch.Tensor] | None) -> None:
    """UserError where the projected rows of a surrogate are not those of the model; None: it has none."""
    if of_surrogate is None or not all(
        ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)
        for ours, theirs in zip(of_model, of_surrogate, strict=True)
    ):
        raise UserError(
            "attack.surrogate: its projected features are not those of the attacked run, so that perturbations cannot "
            "be replayed; give the clean run that this run started from (or leave transfer out of attack.attacks)"
        )


def _protocol(config: AttackConfig) -> str:
    """paper, or what differs from it."""
    published = AttackConfig()
    names: tuple[str, ...] = ("norm", "budget", "num_targets", "anchor_share", "k", "pgd_steps")
    if config.norm == "linf":  # the budgets are the same then
        names = tuple(name for name in names if name != "budget")
    differing = [
        f"{name}={getattr(config, name)}" for name in names if getattr(config, name) != getattr(published, name)
    ]
    return ", ".join(["paper", *differing])


def threat_model_of(
    config: AttackConfig, modalities: Sequence[str], width: int, is_linear: bool, surrogate: Path | None
) -> dict[str, Any]:
    """`width` of a projected row."""
    adjectives = {"visual": "visual", "text": "textual"}
    rows = " and ".join(adjectives[modality] for modality in modalities)
    rows += " rows, each within its own ball" if len(modalities) > 1 else " row"
    radius = "epsilon x L2 norm of the row"
    if (config.norm, config.budget) == ("l2", "paper"):
        radius = f"epsilon x sqrt({width}) x L2 norm of the row (the smallest ball around the box of protocol paper)"
    served = {} if is_linear else {"others": OTHERS}
    return {
        "goal": f"promotion: bring one target item into the top {config.k} of as many anchor users as possible",
        "time": "inference (evasion); the model is fixed",
        "perturbed": f"the target's projected {rows}",
        "norm": config.norm,
        "budget": config.budget,
        "radius": radius,
        "any_content": "besides, the rows replaced by any rows of length 1" if config.any_content else "not asked for",
        "knowledge": "; ".join(
            ["white box, scores of the anchors"]
            + ["square: scores alone"] * ("square" in config.attacks)
            + [f"transfer: {surrogate} alone"] * (surrogate is not None)
        ),
        "anchor_share": config.anchor_share,
        **served,
    }
