"""The targets and anchors of each seed under one model, and who wins there with which rows.

d  width of a projected row
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import AnyContent
from uatmc_dist.attacks.base import Targets
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.scenes import draw_ids, strata
from uatmc_dist.evaluation.stage import AnyScene, stage_of
from uatmc_dist.models.linear_model import LinearModel

_OFF = 1e-4


@dataclass(frozen=True)
class Attacked:
    """A model, and the catalog whose photos and texts its items have."""

    model: LinearModel
    catalog: Catalog


class Drawn:
    """As those of feature-space attacks; which they are depends on the seed and the catalog alone, not on the model.
    Under MMGCN everybody in reach moves along."""

    def __init__(self, attacked: Attacked, attack: AttackConfig, seeds: list[int]) -> None:
        model, catalog = attacked.model, attacked.catalog
        stage = stage_of(model, attack.k)
        self.items: dict[int, list[int]] = {}
        self._scenes: dict[int, AnyScene] = {}
        for seed in seeds:
            items, anchors = draw_ids(attack, seed, "random", strata(catalog)["random"], catalog.num_users)
            self.items[seed] = items.tolist()
            self._scenes[seed] = stage.scenes(items, anchors)[0]

    def target(self, seed: int, index: int) -> Targets:
        return self._scenes[seed].targets.chosen(torch.tensor([index]))

    def won(self, seed: int, index: int, v_d: torch.Tensor, t_d: torch.Tensor) -> float:
        """Exact share of anchors that the target wins with these rows."""
        alone, moved = self._moved(seed, index, v_d, t_d)
        return float(alone.hits(moved))

    def bound(self, seed: int, index: int, modalities: tuple[str, ...]) -> float | None:
        """Share of anchors that no content of these modalities passes; None where there is no certificate."""
        bound_T = self._scenes[seed].certified_hits(AnyContent(), modalities)
        return None if bound_T is None else float(bound_T[index])

    def median_ranks(self, seed: int, index: int, v_d: torch.Tensor, t_d: torch.Tensor) -> tuple[float, float]:
        """Of the anchors, before and with these rows."""
        alone, moved = self._moved(seed, index, v_d, t_d)
        before, after = alone.ranks([alone.clean, moved]).median(0).values.squeeze(1).tolist()
        return before, after

    def _moved(self, seed: int, index: int, v_d: torch.Tensor, t_d: torch.Tensor) -> tuple[AnyScene, Any]:
        alone = self._scenes[seed].alone(index)
        for row_d, was_1d in ((v_d, alone.targets.v_Td), (t_d, alone.targets.t_Td)):
            # `moved` would make one of any row, and no certificate is about others.
            is_row = torch.equal(row_d, was_1d[0]) or abs(float(row_d.norm()) - 1) < _OFF
            assert is_row, f"a row that no content has: its length is {float(row_d.norm()):g}"
        deltas = v_d - alone.targets.v_Td, t_d - alone.targets.t_Td
        return alone, alone.moved(deltas, AnyContent())


def most_popular(catalog: Catalog, has_content: Callable[[int], bool]) -> int:
    """Of the items with content: what others copy. Raises UserError where there is none."""
    counts = np.bincount(catalog.split("train")[1], minlength=catalog.num_items)
    for item in np.argsort(-counts, kind="stable").tolist():
        if has_content(item):
            return int(item)
    raise UserError("no item has a photo or a text, so there is nothing to attack")


def check_alike(catalog: Catalog, surrogate: Attacked) -> None:
    """UserError where a surrogate's users and items are not these, or it does not look at photos."""
    other = surrogate.catalog
    if surrogate.model.dense is None or "visual" not in surrogate.model.dense.modalities:
        raise UserError("content_attack.surrogate: was trained without photos; give a run that looks at them")
    sizes = [(each.num_users, each.num_items) for each in (catalog, other)]
    paths = [each.contents("photo") for each in (catalog, other)]
    if sizes[0] != sizes[1] or paths[1] is None or catalog.titles() != other.titles():
        raise UserError(
            f"content_attack.surrogate: {other.path} has other users, items or photos than {catalog.path}; train the "
            "surrogate on a catalog built from the same files with another --visual-encoder"
        )
