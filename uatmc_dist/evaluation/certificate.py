"""Certified upper bound on promotion: no perturbation within the budget wins more (docs/algorithm.md, section 7).

For linear fusion a perturbation adds at most `worst_case_bonus` to a user's score of an item. Users for whom even that
does not lift the item over their k-th best score are safe from it, whatever the attack.

    U  users    N  items    d  width of a projected row
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import AnyContent, Ball, Definition, Norm, worst_case_bonus
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.kept import KeptSweep
from uatmc_dist.evaluation.promotion import STRONGEST, find_result
from uatmc_dist.evaluation.ranking import Progress
from uatmc_dist.evaluation.scenes import ROUNDING
from uatmc_dist.evaluation.stage import lengths
from uatmc_dist.evaluation.sweep import Count, Pass, Swept
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.parallel.item_parallel import max_over_ranks
from uatmc_kernels import count_above

THREATS: tuple[tuple[Norm, Definition], ...] = (
    ("linf", "paper"),
    ("linf", "training"),
    ("l2", "paper"),
    ("l2", "training"),
)
_MOST_PROMOTABLE = 10


@dataclass(frozen=True)
class Certificate:
    """What `certify` found: the report, and the bound of every item."""

    report: dict[str, Any]
    columns: dict[str, np.ndarray]
    """item, and for each threat and epsilon the certified hit rate of all items (linf_paper_0.05, ...)."""


def check_certifiable(has_content: bool, is_linear: bool) -> None:
    """UserError for a model that no certificate is known for."""
    if not has_content:
        raise UserError("this model has no content (model.content=false), so there is nothing to certify")
    if not is_linear:
        raise UserError(
            "no certificate for this model: its scores are not linear in the features, so that no exact bound exists; "
            "look at the strongest attack"
        )


def certify(
    model: LinearModel,
    catalog: Catalog,
    config: AttackConfig,
    attack: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    kept: KeptSweep | None = None,
) -> Certificate:
    """`certify_swept` of a model that is here as a whole. Raises UserError for one without a certificate."""
    check_certifiable(model.dense is not None, model.is_linear)
    return certify_swept(Swept.whole(model, config.k), catalog, config, attack, progress, kept)


def certify_swept(
    swept: Swept,
    catalog: Catalog,
    config: AttackConfig,
    attack: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    kept: KeptSweep | None = None,
) -> Certificate:
    """Certified Hit@k of every item over all users, for both norms, both budgets and every epsilon. Collective.

    `attack` is the run's attack.json, whose strongest attack is put beside the bound for the same targets and anchors.
    `progress` counts blocks of users. Raises UserError where the catalog has no more than k items.
    """
    lengths(config.k, swept.block.num_items)
    source_ids, titles = catalog.titles()
    num_items, of_model = swept.block.num_items, swept.dense.modalities
    threats = [
        (norm, definition, epsilon, Ball.of_attack(epsilon, norm, definition, swept.v_nd.shape[1]))
        for norm, definition in THREATS
        for epsilon in config.epsilons
    ]
    balls = list(dict.fromkeys(ball for *_, ball in threats))  # two definitions may be the same ball
    replaced = replaceable(of_model)
    passes = [_within(swept, balls), *(_replaced(swept, modalities) for modalities in replaced)]
    bounds_PN = swept.sweep(passes, kept, progress)
    of_ball = dict(zip(balls, bounds_PN, strict=False))
    columns: dict[str, np.ndarray] = {"item": np.arange(num_items)}
    entries = []
    for norm, definition, epsilon, ball in threats:
        bound_N = columns[f"{norm}_{definition}_{epsilon:g}"] = of_ball[ball]
        entries.append(
            {
                "norm": norm,
                "budget": definition,
                "epsilon": epsilon,
                **_summary(bound_N, config.k, source_ids, titles),
                "strongest_attack": _strongest(attack, norm, definition, epsilon, config.k),
            }
        )
    any_content = []
    for modalities, bound_N in zip(replaced, bounds_PN[len(balls) :], strict=True):
        columns[f"any_content_{'_'.join(modalities)}"] = bound_N
        any_content.append(
            {
                "modalities": list(modalities),
                **_summary(bound_N, config.k, source_ids, titles),
                "strongest_attack": _strongest_of_any_content(attack, modalities, of_model, config.k),
            }
        )
    report = {
        "k": config.k,
        "users": swept.num_users,
        "items": num_items,
        f"hit@{config.k}_before": config.k / num_items,
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


# float64, which Triton has no kernel for, on a GPU too.
_count_above = partial(count_above, implementation="tiled")


def certified_hits(swept: Swept, balls: Sequence[Ball]) -> np.ndarray:
    """For every item the largest share of users that could come to have it in their top k, [len(balls), N]. Collective.

    Streams over users and items; float64, so that no attack passes the bound by rounding.
    """
    return swept.sweep([_within(swept, balls)])


def any_content_hits(swept: Swept, modalities: Sequence[str]) -> np.ndarray:
    """The same, [N], where the rows of these modalities may become any rows of length 1 (docs/algorithm.md, 7.1)."""
    bound_N: np.ndarray = swept.sweep([_replaced(swept, modalities)])[0]
    return bound_N


def _within(swept: Swept, balls: Sequence[Ball]) -> Pass:
    """One product serves all balls: they differ in what they add to a user's scores."""

    def counter() -> Count:
        w_v, w_t = (weight.double() for weight in swept.dense.fusion()[:2])
        lengths_n2 = torch.stack([rows.double().norm(dim=1) for rows in (swept.v_nd, swept.t_nd)], dim=1)
        # Projected rows are unit rows up to rounding, or zero.
        is_long_n2 = lengths_n2.cpu() > 0.5
        ids = [(is_long_n2 == torch.tensor(kind)).all(1).nonzero() for kind in product((False, True), repeat=2)]
        ids = [ids_m1.squeeze(1).to(lengths_n2.device) for ids_m1 in ids]
        longest = [_largest(lengths_n2[ids_m]) for ids_m in ids]
        kinds = [
            (ids_m, swept.items_nK[ids_m].double(), of_longest)
            for ids_m, of_longest in zip(ids, longest, strict=True)
            if len(ids_m)
        ]

        def count(users_BK: torch.Tensor, thresholds_B: torch.Tensor) -> torch.Tensor:
            counts_Pn = torch.zeros(len(balls), len(lengths_n2), dtype=torch.int64, device=users_BK.device)
            content_BC = users_BK[:, -w_v.shape[0] :]
            for ids_m, items_mK, of_longest in kinds:
                boni = []
                for ball in balls:
                    visual, text = (Ball(ball.epsilon * most * (1 + ROUNDING), ball.norm) for most in of_longest)
                    boni.append(worst_case_bonus(content_BC, w_v, w_t, visual, text))
                counts_Pn[:, ids_m] = _count_above(users_BK, items_mK, thresholds_B, torch.stack(boni, dim=1))
            return counts_Pn

        return count

    return Pass(len(balls), counter)


def _replaced(swept: Swept, modalities: Sequence[str]) -> Pass:
    """The modalities' terms are taken out of each item, and the largest that they can come to is added: ||W_v^T h|| for
    the photo."""

    def counter() -> Count:
        items_nK = swept.items_nK.double()
        fusion = {name: weight.double() for name, weight in zip(MODALITIES, swept.dense.fusion(), strict=False)}
        rows = {"visual": swept.v_nd, "text": swept.t_nd}
        width = fusion["visual"].shape[0]
        lengths_n2 = torch.stack([rows[name].double().norm(dim=1) for name in MODALITIES], dim=1)
        # What is there may be a little longer than 1, by rounding, and may stay.
        longest = {
            name: max(1.0, most) * (1 + ROUNDING) for name, most in zip(MODALITIES, _largest(lengths_n2), strict=True)
        }
        for name in modalities:
            items_nK[:, -width:] -= rows[name].double() @ fusion[name].T

        def count(users_BK: torch.Tensor, thresholds_B: torch.Tensor) -> torch.Tensor:
            content_BC = users_BK[:, -width:]
            most = [longest[name] * AnyContent().most(content_BC @ fusion[name]) for name in modalities]
            return _count_above(users_BK, items_nK, thresholds_B, torch.stack(most).sum(0)[:, None])

        return count

    return Pass(1, counter)


def _largest(lengths_m2: torch.Tensor) -> list[float]:
    """Of each column, over all ranks; 0 where there is no row."""
    largest_2 = lengths_m2.amax(dim=0) if len(lengths_m2) else lengths_m2.new_zeros(2)
    return max_over_ranks(largest_2).tolist()


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
