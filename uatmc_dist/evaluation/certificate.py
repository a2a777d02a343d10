"""Certified upper bound on promotion: no perturbation within the budget wins more (docs/algorithm.md, section 7).

For linear fusion a perturbation adds at most `worst_case_bonus` to a user's score of an item. Users for whom even that
does not lift the item over their k-th best score are safe from it, whatever the attack.

    U  users    N  items    d  width of a projected row
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import AnyContent, Ball, Definition, Norm, worst_case_bonus
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.promotion import STRONGEST, find_result
from uatmc_dist.evaluation.scenes import ROUNDING, Bars
from uatmc_dist.evaluation.stage import lengths
from uatmc_dist.models.linear_model import LinearModel
from uatmc_kernels import count_above

THREATS: tuple[tuple[Norm, Definition], ...] = (
    ("linf", "paper"),
    ("linf", "training"),
    ("l2", "paper"),
    ("l2", "training"),
)
_USERS_AT_ONCE = 1 << 14
_MOST_PROMOTABLE = 10


@dataclass(frozen=True)
class Certificate:
    """What `certify` found: the report, and the bound of every item."""

    report: dict[str, Any]
    columns: dict[str, np.ndarray]
    """item, and for each threat and epsilon the certified hit rate of all items (linf_paper_0.05, ...)."""


def certify(
    model: LinearModel,
    catalog: Catalog,
    config: AttackConfig,
    attack: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Certificate:
    """Certified Hit@k of every item over all users, for both norms, both budgets and every epsilon.

    `attack` is the run's attack.json, whose strongest attack is put beside the bound for the same targets and anchors.
    `progress(done, total)` counts sweeps over the catalog. Raises UserError for a model without content.
    """
    if model.dense is None:
        raise UserError("this model has no content (model.content=false), so there is nothing to certify")
    if not model.is_linear:
        raise UserError(
            "no certificate for this model: its scores are not linear in the features, so that no exact bound exists; "
            "look at the strongest attack"
        )
    bars = Bars.of(model, lengths(config.k, len(model.identity_Nd)))
    source_ids, titles = catalog.titles()
    columns: dict[str, np.ndarray] = {"item": np.arange(len(model.identity_Nd))}
    swept: dict[Ball, np.ndarray] = {}
    entries = []
    replaced = replaceable(model.dense.modalities)
    total = len(THREATS) * len(config.epsilons) + len(replaced)
    for norm, definition in THREATS:
        for epsilon in config.epsilons:
            budget = Ball.of_attack(epsilon, norm, definition, model.v_Nd.shape[1])
            if budget not in swept:
                swept[budget] = certified_hits(model, bars, config.k, budget)
            bound_N = columns[f"{norm}_{definition}_{epsilon:g}"] = swept[budget]
            entries.append(
                {
                    "norm": norm,
                    "budget": definition,
                    "epsilon": epsilon,
                    **_summary(bound_N, config.k, source_ids, titles),
                    "strongest_attack": _strongest(attack, norm, definition, epsilon, config.k),
                }
            )
            progress(len(entries), total)
    any_content = []
    for modalities in replaced:
        bound_N = any_content_hits(model, bars, config.k, modalities)
        columns[f"any_content_{'_'.join(modalities)}"] = bound_N
        any_content.append(
            {
                "modalities": list(modalities),
                **_summary(bound_N, config.k, source_ids, titles),
                "strongest_attack": _strongest_of_any_content(attack, modalities, model.dense.modalities, config.k),
            }
        )
        progress(len(entries) + len(any_content), total)
    report = {
        "k": config.k,
        "users": len(model.users_UK),
        "items": len(model.identity_Nd),
        f"hit@{config.k}_before": config.k / len(model.identity_Nd),
        "epsilons": config.epsilons,
        "meaning": f"share of users into whose top {config.k} an item could come at most, after any perturbation of "
        "its two projected rows within the budget; mean over all items, all users",
        "results": entries,
        "any_content": any_content,
        "any_content_means": "the same where these rows may be replaced by any rows of length 1, so by whatever photo "
        "or text, through whatever encoder: no epsilon, no norm",
    }
    return Certificate(report, columns)


def replaceable(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """What a seller may replace: either modality, or both."""
    return [*((name,) for name in modalities), *([tuple(modalities)] if len(modalities) > 1 else [])]


def _summary(bound_N: np.ndarray, k: int, source_ids: Sequence[Any], titles: Sequence[Any]) -> dict[str, Any]:
    return {
        f"certified_hit@{k}": float(bound_N.mean()),
        "quantiles": {f"{share:g}": float(np.quantile(bound_N, share)) for share in (0.1, 0.5, 0.9, 0.99, 1.0)},
        "most_promotable": [
            {
                "item": int(item),
                "source_id": source_ids[item],
                "title": titles[item],
                f"certified_hit@{k}": float(bound_N[item]),
            }
            for item in np.argsort(-bound_N, kind="stable")[:_MOST_PROMOTABLE]
        ],
    }


def certified_hits(model: LinearModel, bars: Bars, k: int, budget: Ball) -> np.ndarray:
    """For every item the largest share of users that could come to have it in their top k, [N].

    Streams over users and items; float64, so that no attack passes the bound by rounding.
    """
    assert model.dense is not None
    items_NK = bars.items_NK.double()
    w_v, w_t = (weight.double() for weight in model.dense.fusion()[:2])
    thresholds_U = _thresholds(bars, k)
    counts_N = torch.zeros(len(items_NK), dtype=torch.int64)
    lengths_N2 = torch.stack([model.v_Nd.double().norm(dim=1), model.t_Nd.double().norm(dim=1)], dim=1)
    # Projected rows are unit rows up to rounding, or zero.
    for kind in torch.unique(lengths_N2 > 0.5, dim=0):
        of_kind = ((lengths_N2 > 0.5) == kind).all(dim=1).nonzero().squeeze(1)
        visual, text = (
            Ball(budget.epsilon * float(longest) * (1 + ROUNDING), budget.norm)
            for longest in lengths_N2[of_kind].amax(dim=0)
        )
        items_of_kind = items_NK[of_kind]
        for start in range(0, len(model.users_UK), _USERS_AT_ONCE):
            users = model.users_UK[start : start + _USERS_AT_ONCE].double()
            bonus = worst_case_bonus(users[:, -w_v.shape[0] :], w_v, w_t, visual, text)
            thresholds = thresholds_U[start : start + _USERS_AT_ONCE]
            counts_N[of_kind] += count_above(users, items_of_kind, thresholds, bonus)
    return counts_N.double().div(len(model.users_UK)).numpy()


def any_content_hits(model: LinearModel, bars: Bars, k: int, modalities: Sequence[str]) -> np.ndarray:
    """The same, [N], where the rows of these modalities may become any rows of length 1 (docs/algorithm.md, 7.1).

    Their terms are taken out of each item, and the largest that they can come to is added: ||W_v^T h|| for the photo.
    """
    assert model.dense is not None
    items_NK = bars.items_NK.double()
    fusion = dict(zip(MODALITIES, model.dense.fusion(), strict=False))
    rows = {"visual": model.v_Nd, "text": model.t_Nd}
    width = fusion["visual"].shape[0]
    longest = {}
    for name in modalities:
        items_NK[:, -width:] -= rows[name].double() @ fusion[name].double().T
        # What is there may be a little longer than 1, by rounding, and may stay.
        longest[name] = max(1.0, float(rows[name].double().norm(dim=1).amax())) * (1 + ROUNDING)
    thresholds_U = _thresholds(bars, k)
    counts_N = torch.zeros(len(items_NK), dtype=torch.int64)
    for start in range(0, len(model.users_UK), _USERS_AT_ONCE):
        users = model.users_UK[start : start + _USERS_AT_ONCE].double()
        content = users[:, -width:]
        most = [longest[name] * AnyContent().most(content @ fusion[name].double()) for name in modalities]
        thresholds = thresholds_U[start : start + _USERS_AT_ONCE]
        counts_N += count_above(users, items_NK, thresholds, torch.stack(most).sum(0))
    return counts_N.double().div(len(model.users_UK)).numpy()


def _thresholds(bars: Bars, k: int) -> torch.Tensor:
    """A score that rounds to the bar in float32 may be below it in float64, so the bar is lowered by one step. Who has
    the item in the top k already keeps it: the clean score is at least the bar."""
    best_U, _ = bars.at(k)
    return torch.nextafter(best_U, torch.full_like(best_U, -torch.inf)).double()


def _strongest_of_any_content(
    attack: dict[str, Any] | None, modalities: Sequence[str], of_model: Sequence[str], k: int
) -> dict[str, Any] | None:
    """Of attack.json: with everything replaced, or of the attack that touches this modality alone."""
    if attack is None or attack["k"] != k:
        return None
    name = STRONGEST if list(modalities) == list(of_model) else f"{modalities[0]}_only"
    return _figures(attack.get("any_content", []), name, None, k)


def _strongest(
    attack: dict[str, Any] | None, norm: Norm, definition: Definition, epsilon: float, k: int
) -> dict[str, Any] | None:
    """The strongest attack of attack.json under the same threat, and the bound for the same targets and anchors."""
    if attack is None or attack["k"] != k:
        return None
    threat = attack["threat_model"]
    if (threat["norm"], threat.get("budget")) != (norm, definition):
        return None
    return _figures(attack["results"], STRONGEST, epsilon, k)


def _figures(results: Sequence[dict[str, Any]], name: str, epsilon: float | None, k: int) -> dict[str, Any] | None:
    try:
        result = find_result(results, name, epsilon)
    except KeyError:
        return None
    return {name: result[name] for name in (f"hit@{k}_before", f"hit@{k}_after", f"certified_hit@{k}", "targets")}
