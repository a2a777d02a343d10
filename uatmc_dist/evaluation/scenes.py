"""What an attack is measured on: target items and anchor users of one seed and stratum, and the bars to clear.

T  targets    A  anchors    a  those of this rank    U  users    n  items of this rank    J  lengths of ranking
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.anchors import Anchors
from uatmc_dist.attacks.base import Targets
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.evaluation.exact_topk import ExactTopk
from uatmc_dist.evaluation.ranking import UserRows
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.models.projectors import ContentModel
from uatmc_dist.parallel.item_parallel import ItemBlock, merge_topk, sum_over_ranks

CPU = torch.device("cpu")
_USERS_AT_ONCE = 1024
_ITEMS_AT_ONCE = 4096
RANKED_ANCHORS = 256
_COLD_SHARE, _POPULAR_SHARE = 0.2, 0.05
ROUNDING = 1e-9
"""Relative; the certificate must not fail by the rounding of float64."""


@dataclass(frozen=True)
class Bars:
    """For each length of ranking, each user's k-th and (k+1)-th best score of the clean catalog, nothing masked.

    The target competes with the OTHER items: where it is itself among the k best, the bar is the (k+1)-th score.
    float32; scores are rounded to float32 before they are compared, so that an item exactly at its bar is recognised.
    """

    ks: tuple[int, ...]
    best_UJ: torch.Tensor
    next_UJ: torch.Tensor
    items_nK: torch.Tensor
    """The clean catalog. Its rows are taken from here: computed anew they may differ in their last bits."""

    @classmethod
    def of(cls, model: LinearModel, ks: tuple[int, ...], device: torch.device = CPU) -> "Bars":
        users_UK = model.users_UK
        return cls.ranked(lambda ids_B: users_UK[ids_B].to(device), len(users_UK), model.items().to(device), ks)

    @classmethod
    def ranked(cls, user_rows: UserRows, num_users: int, items_nK: torch.Tensor, ks: tuple[int, ...]) -> "Bars":
        """Collective where the items are shared out over ranks."""
        best, following = [], []
        for scores in best_scores(ExactTopk(items_nK), user_rows, range(num_users), ks[-1] + 1):
            best.append(scores[:, [k - 1 for k in ks]])
            following.append(scores[:, list(ks)])
        return cls(ks, torch.cat(best), torch.cat(following), items_nK)

    def at(self, k: int, users: torch.Tensor | slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """(k-th best, (k+1)-th best), [U] each."""
        index = self.ks.index(k)
        return self.best_UJ[users, index], self.next_UJ[users, index]


def best_scores(best_here: ExactTopk, user_rows: UserRows, users: range, k: int) -> Iterator[torch.Tensor]:
    """The k best scores of these users in float32, best first, nothing masked: [B, k], a block of users after the
    other. `best_here` is of this rank's items. Collective where the items are shared out over ranks."""
    for start in range(users.start, users.stop, _USERS_AT_ONCE):
        users_BK = user_rows(torch.arange(start, min(start + _USERS_AT_ONCE, users.stop)))
        scores_Bk, ids_Bk = best_here(users_BK, k)
        yield merge_topk(scores_Bk.cpu(), ids_Bk.cpu())[0]


@dataclass(frozen=True)
class Cast:
    """A model under linear fusion, as scenes are drawn from it: whole, or in the row blocks of several ranks."""

    block: ItemBlock
    user_rows: UserRows
    """Collective."""
    bars: Bars
    """Of all users: a few numbers each, on every rank."""
    content_rows: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    """identity, v and t [m, d] of these items of this rank."""
    dense: ContentModel

    @classmethod
    def whole(cls, model: LinearModel, ks: tuple[int, ...], device: torch.device = CPU) -> "Cast":
        assert model.dense is not None
        users_UK, block = model.users_UK, ItemBlock(len(model.v_Nd), 0, 1)

        def content_rows(ids_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return model.identity_Nd[ids_m], model.v_Nd[ids_m], model.t_Nd[ids_m]

        bars = Bars.of(model, ks, device)
        return cls(block, lambda ids_B: users_UK[ids_B].to(device), bars, content_rows, model.dense)

    def scene(self, k: int, items_T: torch.Tensor, users_A: torch.Tensor, surrogate: Targets | None) -> "Scene":
        """Collective: rows of the targets travel, anchors' to the rank that has them here."""
        device = self.bars.items_nK.device
        # In training with engine.precision=bf16 they are not float32.
        w_v, w_t, bias = (weight.detach().to(device).float() for weight in self.dense.fusion())
        anchors = Anchors.over_ranks(len(users_A))
        mine_a = users_A[anchors.positions_a]
        best_aJ, next_aJ = (bars_UJ[mine_a].to(device) for bars_UJ in (self.bars.best_UJ, self.bars.next_UJ))
        of_anchors = replace(self.bars, best_UJ=best_aJ, next_UJ=next_aJ)
        place_m = self.block.positions_of_own(items_T)
        ids_m = items_T[place_m]
        rows = self.bars.items_nK[(ids_m - self.block.lo).to(device)], *self.content_rows(ids_m)
        clean_TK, identity_Td, v_Td, t_Td = (
            self._on_every_rank(place_m.to(device), rows_mC.to(device), len(items_T)) for rows_mC in rows
        )
        targets = Targets(
            anchors=anchors,
            users_aK=self._anchor_rows(users_A, anchors),
            thresholds_a=of_anchors.at(k)[0],
            identity_Td=identity_Td,
            v_Td=v_Td,
            t_Td=t_Td,
            w_v=w_v,
            w_t=w_t,
            bias=bias,
            surrogate=surrogate,
        )
        return Scene(targets, clean_TK, of_anchors, k)

    def _on_every_rank(self, place_m: torch.Tensor, rows_mC: torch.Tensor, num_targets: int) -> torch.Tensor:
        rows_TC = rows_mC.new_zeros(num_targets, rows_mC.shape[1])
        rows_TC[place_m] = rows_mC
        return sum_over_ranks(rows_TC) if self.block.world_size > 1 else rows_TC

    def _anchor_rows(self, users_A: torch.Tensor, anchors: Anchors) -> torch.Tensor:
        kept = [self.bars.items_nK.new_zeros(0, self.bars.items_nK.shape[1])]
        for start in range(0, len(users_A), _USERS_AT_ONCE):
            position_B = torch.arange(start, min(start + _USERS_AT_ONCE, len(users_A)))
            rows_BK = self.user_rows(users_A[position_B])
            mine_b = torch.isin(position_B, anchors.positions_a).nonzero().squeeze(1)
            kept.append(rows_BK[mine_b.to(rows_BK.device)])
        return torch.cat(kept)


@dataclass(frozen=True)
class Scene:
    """Targets and anchors, and the judge of what a perturbation reaches: exact hits, in float64. Collective where the
    anchors are shared out over ranks."""

    targets: Targets
    clean_TK: torch.Tensor
    bars: Bars
    """Those of this rank's anchors."""
    k: int
    suffix: ClassVar[str] = ""

    def alone(self, index: int) -> "Scene":
        """With one of the targets."""
        one = torch.tensor([index], device=self.clean_TK.device)
        return replace(self, targets=self.targets.chosen(one), clean_TK=self.clean_TK[one])

    @property
    def ks(self) -> tuple[int, ...]:
        return self.bars.ks

    @property
    def clean(self) -> torch.Tensor:
        return self.clean_TK

    def moved(self, deltas: Deltas, budget: Budget) -> torch.Tensor:
        """Embeddings [T, K] of the perturbed targets, float64; projected once more, so that float32 rounding takes no
        perturbation out of the ball."""
        targets = self.targets
        visual, text = (
            budget.project(delta.double(), row.double())
            for delta, row in zip(deltas, (targets.v_Td, targets.t_Td), strict=True)
        )
        content_Td = visual @ targets.w_v.double().T + text @ targets.w_t.double().T
        return self.clean_TK.double() + torch.nn.functional.pad(content_Td, (targets.identity_Td.shape[1], 0))

    def hits(self, moved_TK: torch.Tensor) -> torch.Tensor:
        """Share of anchors with the target in their top k, [T] float64."""
        counts_T = moved_TK.new_zeros(len(moved_TK), dtype=torch.int64)
        for piece in self._anchors.pieces():
            counts_T += (self._scores(piece, moved_TK).float() > self._bar_aT[piece]).sum(0)
        return self._anchors.mean(counts_T)

    def hits_by_length(self, moved: list[torch.Tensor]) -> torch.Tensor:
        """The same at every length of ranking, [len(moved), J, T] for so many embeddings [T, K]."""
        counts = self.clean_TK.new_zeros(len(moved), len(self.bars.ks), len(self.clean_TK), dtype=torch.int64)
        for piece in self._anchors.pieces():
            bars = [self._bars_of(piece, k) for k in self.bars.ks]
            for row, moved_TK in enumerate(moved):
                scores_aT = self._scores(piece, moved_TK).float()
                for column, bar_aT in enumerate(bars):
                    counts[row, column] += (scores_aT > bar_aT).sum(0)
        return self._anchors.mean(counts)

    def certified_hits(self, budget: Budget, modalities: Sequence[str] = MODALITIES) -> torch.Tensor:
        """Upper bound on `hits` at k after ANY perturbation of these modalities in the budget, [T]: the share of
        anchors whose bar the target's score passes when raised by the most that is possible for them
        (docs/algorithm.md, section 7)."""
        targets = self.targets
        content_ad = targets.content_ad.double()
        of_both = (targets.w_v.double(), targets.v_Td.double()), (targets.w_t.double(), targets.t_Td.double())
        fused = [of_one for name, of_one in zip(MODALITIES, of_both, strict=True) if name in modalities]
        counts_T = content_ad.new_zeros(len(targets), dtype=torch.int64)
        for piece in self._anchors.pieces():
            bonus_aT = content_ad.new_zeros(())
            for weight, rows_Td in fused:
                along_ad = content_ad[piece] @ weight
                # Never below zero: who has the target keeps it where nothing is done.
                gain_aT = budget.gain(along_ad, rows_Td).clamp(min=0)
                bonus_aT = bonus_aT + gain_aT + ROUNDING * budget.most(along_ad)[:, None]
            # float32(s) > bar implies s > bar, so the bound needs no rounding of the scores.
            most_aT = self._scores(piece, self.clean_TK) + bonus_aT
            counts_T += (most_aT > self._bar_aT[piece]).sum(0)
        return self._anchors.mean(counts_T)

    @property
    def _anchors(self) -> Anchors:
        return self.targets.anchors

    def _scores(self, piece: slice, items_TK: torch.Tensor) -> torch.Tensor:
        return self.targets.users_aK[piece].double() @ items_TK.double().T

    @cached_property
    def _bar_aT(self) -> torch.Tensor:
        none_aT = self.clean_TK.new_zeros(0, len(self.clean_TK))
        return torch.cat([none_aT, *(self._bars_of(piece, self.k) for piece in self._anchors.pieces())])

    def _bars_of(self, piece: slice, k: int) -> torch.Tensor:
        """What a target has to pass for each of these anchors, [a, T]."""
        best_a, next_a = self.bars.at(k, piece)
        is_best_aT = self._scores(piece, self.clean_TK).float() >= best_a[:, None]
        return torch.where(is_best_aT, next_a[:, None], best_a[:, None])

    def mean_ranks(self, moved: list[torch.Tensor]) -> torch.Tensor:
        """Mean rank of each target over 256 of the anchors; [len(moved), T] for so many embeddings [T, K]."""
        return self.ranks(moved).double().mean(0)

    def ranks(self, moved: list[torch.Tensor]) -> torch.Tensor:
        """Rank of each target among all items, from 1, for 256 of the anchors, [R, len(moved), T]. The catalog streams
        by in tiles, each sorted for itself."""
        ranked_R = torch.arange(min(RANKED_ANCHORS, self._anchors.count))
        users_RK = self._anchors.rows_of(self.targets.users_aK, ranked_R).double()
        moved_RM = (users_RK @ torch.cat(moved).double().T).float()
        own_RM = (users_RK @ self.clean_TK.double().T).float().repeat(1, len(moved))
        above_RM = torch.zeros_like(moved_RM, dtype=torch.int64)
        items_nK = self.bars.items_nK
        for start in range(0, len(items_nK), _ITEMS_AT_ONCE):
            scores_Rn = (users_RK @ items_nK[start : start + _ITEMS_AT_ONCE].double().T).float().sort(dim=1).values
            above_RM += scores_Rn.shape[1] - torch.searchsorted(scores_Rn, moved_RM, right=True)
        above_RM = self._anchors.total(above_RM)
        above_RM -= (own_RM > moved_RM).long()  # the target does not compete with what it was
        return 1 + above_RM.view(len(above_RM), len(moved), -1)


def strata(catalog: Catalog) -> dict[str, np.ndarray]:
    """Target pools: all items, the 20 % with the fewest training interactions, the 5 % with the most."""
    _, items = catalog.split("train")
    by_popularity = np.argsort(np.bincount(items, minlength=catalog.num_items), kind="stable")
    num_cold = max(1, round(_COLD_SHARE * catalog.num_items))
    num_popular = max(1, round(_POPULAR_SHARE * catalog.num_items))
    return {
        "random": np.arange(catalog.num_items),
        "cold": by_popularity[:num_cold],
        "popular": by_popularity[-num_popular:],
    }


def draw_ids(
    config: AttackConfig, seed: int, stratum: str, items: np.ndarray, num_users: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(target items, anchor users) of one seed and stratum."""
    rng = np.random.default_rng((seed, *stratum.encode()))
    chosen = rng.choice(items, size=min(config.num_targets, len(items)), replace=False)
    num_anchors = max(1, round(config.anchor_share * num_users))
    anchors = rng.choice(num_users, size=num_anchors, replace=False)
    return torch.from_numpy(chosen), torch.from_numpy(anchors)
