"""Promotion attacks on a trained model, protocol `paper` (docs/algorithm.md, section 6).

For each seed: random target items, random anchor users; each target is attacked for itself, all of them
batched. Hit@k is the share of anchors that have the target among their k best items, nothing masked.

    T  targets    A  anchors    U  users    k  length of the ranking
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from uatmc_dist.attacks.base import Attack, Targets
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.models.trained import TrainedModel
from uatmc_kernels import topk_all_items

_USERS_AT_ONCE = 1024
_COLD_SHARE, _POPULAR_SHARE = 0.2, 0.05


def attack_model(
    model: TrainedModel,
    catalog: Catalog,
    config: AttackConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Attacks with FGSM and PGD at every epsilon; returns what attack.json holds.

    hit@k before and after, as means over seeds and targets, and promotion_gain = after - before, for all
    items and for the cold and popular ones apart. `progress(done, total)` counts seeds.
    Raises UserError for a model without content: there is nothing to perturb.
    """
    if model.dense is None:
        raise UserError("this model has no content (model.content=false), so there is nothing to perturb")
    best_U, next_U = _thresholds(model, config.k)
    groups = strata(catalog)
    attacks: tuple[Attack, ...] = (FGSM(), PGD(config.pgd_steps))
    before: dict[str, list[np.ndarray]] = {name: [] for name in groups}
    after: dict[tuple[str, str, float], list[np.ndarray]] = {}
    for done, seed in enumerate(config.seeds):
        for stratum, items in groups.items():
            rng = np.random.default_rng((seed, len(stratum)))
            chosen = torch.from_numpy(rng.choice(items, size=min(config.num_targets, len(items)), replace=False))
            num_anchors = max(1, round(config.anchor_share * catalog.num_users))
            anchors = torch.from_numpy(rng.choice(catalog.num_users, size=num_anchors, replace=False))
            targets = _targets(model, chosen, anchors, best_U)
            clean_TK = targets.items()
            limits = best_U[anchors], next_U[anchors]
            before[stratum].append(_hits(targets.users_AK, clean_TK, clean_TK, *limits))
            for attack in attacks:
                for epsilon in config.epsilons:
                    moved_TK = targets.items(*attack(targets, epsilon))
                    hits = _hits(targets.users_AK, clean_TK, moved_TK, *limits)
                    after.setdefault((stratum, attack.name, epsilon), []).append(hits)
        progress(done + 1, len(config.seeds))
    return {
        "protocol": "paper",
        "threat_model": {
            "goal": "promotion: bring one target item into the top k of as many anchor users as possible",
            "time": "inference (evasion); the model is fixed",
            "perturbed": "the target's projected visual and textual rows",
            "norm": "linf",
            "radius": "epsilon x L2 norm of the row",
            "knowledge": "white box; scores of the anchors",
            "anchor_share": config.anchor_share,
        },
        "k": config.k,
        "seeds": config.seeds,
        "pgd_steps": config.pgd_steps,
        "targets": {name: min(config.num_targets, len(items)) for name, items in groups.items()},
        "results": [
            _result(stratum, name, epsilon, config.k, np.concatenate(before[stratum]), np.concatenate(hits))
            for (stratum, name, epsilon), hits in after.items()
        ],
    }


def strata(catalog: Catalog) -> dict[str, np.ndarray]:
    """Target pools: all items, the 20 % with the fewest training interactions, the 5 % with the most."""
    _, items = catalog.split("train")
    by_popularity = np.argsort(np.bincount(items, minlength=catalog.num_items), kind="stable")
    num_cold = max(1, round(_COLD_SHARE * catalog.num_items))
    num_popular = max(1, round(_POPULAR_SHARE * catalog.num_items))
    return {
        "all": np.arange(catalog.num_items),
        "cold": by_popularity[:num_cold],
        "popular": by_popularity[-num_popular:],
    }


def find_result(results: Sequence[dict[str, Any]], attack: str, epsilon: float, stratum: str = "all") -> dict[str, Any]:
    """The entry of attack.json's results for one attack, epsilon and stratum. KeyError where there is none."""
    for result in results:
        if (result["attack"], result["epsilon"], result["stratum"]) == (attack, epsilon, stratum):
            return result
    raise KeyError((attack, epsilon, stratum))


def _result(stratum: str, attack: str, epsilon: float, k: int, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    gain = float(after.mean() - before.mean())
    return {
        "stratum": stratum,
        "attack": attack,
        "epsilon": epsilon,
        f"hit@{k}_before": float(before.mean()),
        f"hit@{k}_after": float(after.mean()),
        "promotion_gain": gain,
        "relative_gain": gain / float(before.mean()) if before.mean() > 0 else None,
        "targets": len(after),
    }


def _thresholds(model: TrainedModel, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each user's k-th and (k+1)-th best clean score, [U] each, float32."""
    items_NK = model.items().double()
    pairs = [
        topk_all_items(model.users_UK[start : start + _USERS_AT_ONCE].double(), items_NK, k + 1)[0][:, k - 1 :]
        for start in range(0, len(model.users_UK), _USERS_AT_ONCE)
    ]
    best_U, next_U = torch.cat(pairs).unbind(1)
    return best_U.contiguous(), next_U.contiguous()


def _targets(model: TrainedModel, items: torch.Tensor, anchors: torch.Tensor, best_U: torch.Tensor) -> Targets:
    assert model.dense is not None
    return Targets(
        users_AK=model.users_UK[anchors],
        thresholds_A=best_U[anchors],
        identity_Td=model.identity_Nd[items],
        v_Td=model.v_Nd[items],
        t_Td=model.t_Nd[items],
        w_v=model.dense.w_v,
        w_t=model.dense.w_t,
        bias=model.dense.bias,
    )


def _hits(
    users_AK: torch.Tensor, clean_TK: torch.Tensor, moved_TK: torch.Tensor, best_A: torch.Tensor, next_A: torch.Tensor
) -> np.ndarray:
    """Share of anchors with the target in their top k, per target.

    The target competes with the OTHER items: where its clean score is itself among the k best, the bar is the
    (k+1)-th best score of all, else the k-th. Scores are float64 rounded to float32, as the bars are: an item
    exactly at its bar must be recognised.
    """
    hits_T = torch.zeros(len(moved_TK))
    for start in range(0, len(users_AK), _USERS_AT_ONCE):
        chunk = slice(start, start + _USERS_AT_ONCE)
        users = users_AK[chunk].double()
        is_best_AT = (users @ clean_TK.double().T).float() >= best_A[chunk, None]
        bar_AT = torch.where(is_best_AT, next_A[chunk, None], best_A[chunk, None])
        hits_T += ((users @ moved_TK.double().T).float() > bar_AT).sum(0)
    return (hits_T / len(users_AK)).numpy()
