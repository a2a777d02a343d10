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
from uatmc_dist.checksums import digest_of_stamped
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.scenes import draw_ids, strata
from uatmc_dist.evaluation.stage import AnyScene, stage_of
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.models.trained import FILE

_OFF = 1e-4


@dataclass(frozen=True)
class Attacked:
    """A model, and the catalog whose photos and texts its items have."""

    model: LinearModel
    catalog: Catalog

    @property
    def digest(self) -> str:
        """Of the model's weights."""
        assert self.model.path is not None
        return digest_of_stamped(self.model.path / "model" / FILE)


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

    def reached(
        self, seed: int, index: int, file: str, v_d: torch.Tensor | None = None, t_d: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Share of anchors that the target wins with the rows of a changed file, None for what it leaves alone, and how
        far these are from its own, in lengths of them."""
        target = self.target(seed, index)
        own, moved = (target.v_Td[0], target.t_Td[0]), {}
        rows = [was_d if now_d is None else now_d for now_d, was_d in zip((v_d, t_d), own, strict=True)]
        for name, now_d, was_d in zip(MODALITIES, (v_d, t_d), own, strict=True):
            if now_d is not None:
                length = float(was_d.norm()) or 1.0  # of an item that had no photo or text
                moved[f"{name}_l2"] = float((now_d - was_d).norm()) / length
                moved[f"{name}_linf"] = float((now_d - was_d).abs().max()) / length
        return {"file": file, "after": self.won(seed, index, *rows), "moved": moved}

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


def most_popular(catalog: Catalog, content: str, has_content: Callable[[int], bool]) -> int:
    """Of the items with such content, "photo" or "text": what others copy. Raises UserError where there is none."""
    counts = np.bincount(catalog.split("train")[1], minlength=catalog.num_items)
    for item in np.argsort(-counts, kind="stable").tolist():
        if has_content(item):
            return int(item)
    raise UserError(f"{catalog.path}: no item has a {content}, so there is nothing to attack")


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
