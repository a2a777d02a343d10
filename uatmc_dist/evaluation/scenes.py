"""What an attack is measured on: target items and anchor users of one seed and stratum, and the bars to clear.

T  targets    A  anchors    U  users    J  lengths of ranking    k  one of them
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Targets
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.evaluation.ranking import UserRows
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.parallel.item_parallel import merge_topk
from uatmc_kernels import topk_all_items

_USERS_AT_ONCE = 1024
_ITEMS_AT_ONCE = 4096
_RANKED_ANCHORS = 256
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
    items_NK: torch.Tensor
    """The clean catalog. Its rows are taken from here: computed anew they may differ in their last bits."""

    @classmethod
    def of(cls, model: LinearModel, ks: tuple[int, ...]) -> "Bars":
        items_NK, users_UK = model.items(), model.users_UK
        best, following = [], []
        for scores in best_scores(lambda users_B: users_UK[users_B], len(users_UK), items_NK, ks[-1] + 1):
            best.append(scores[:, [k - 1 for k in ks]])
            following.append(scores[:, list(ks)])
        return cls(ks, torch.cat(best), torch.cat(following), items_NK)

    def at(self, k: int, users: torch.Tensor | slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """(k-th best, (k+1)-th best), [U] each."""
        index = self.ks.index(k)
        return self.best_UJ[users, index], self.next_UJ[users, index]


def best_scores(user_rows: UserRows, num_users: int, items_nK: torch.Tensor, k: int) -> Iterator[torch.Tensor]:
    """The k best scores of all users in float32, best first, nothing masked: [B, k], a block of users after the other.
    Collective where the items are shared out over ranks."""
    items_in_float64 = items_nK.double()
    for start in range(0, num_users, _USERS_AT_ONCE):
        users_BK = user_rows(torch.arange(start, min(start + _USERS_AT_ONCE, num_users)))
        scores_Bk, ids_Bk = topk_all_items(users_BK.double(), items_in_float64, k)
        yield merge_topk(scores_Bk.cpu(), ids_Bk.cpu())[0]


@dataclass(frozen=True)
class Scene:
    """Targets and anchors, and the judge of what a perturbation reaches: exact hits, in float64."""

    targets: Targets
    clean_TK: torch.Tensor
    bars: Bars
    """Those of the anchors."""
    k: int
    suffix: ClassVar[str] = ""

    @classmethod
    def draw(
        cls,
        model: LinearModel,
        bars: Bars,
        k: int,
        items: torch.Tensor,
        anchors: torch.Tensor,
        surrogate: Targets | None,
    ) -> "Scene":
        assert model.dense is not None
        w_v, w_t, bias = model.dense.fusion()
        of_anchors = replace(bars, best_UJ=bars.best_UJ[anchors], next_UJ=bars.next_UJ[anchors])
        targets = Targets(
            users_AK=model.users_UK[anchors],
            thresholds_A=of_anchors.at(k)[0],
            identity_Td=model.identity_Nd[items],
            v_Td=model.v_Nd[items],
            t_Td=model.t_Nd[items],
            w_v=w_v,
            w_t=w_t,
            bias=bias,
            surrogate=surrogate,
        )
        return cls(targets, bars.items_NK[items], of_anchors, k)

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
        counts_T = torch.zeros(len(moved_TK), dtype=torch.int64)
        for chunk in self._chunks():
            counts_T += (self._scores(chunk, moved_TK).float() > self._bar_AT[chunk]).sum(0)
        return counts_T.double() / len(self._bar_AT)

    def hits_by_length(self, moved: list[torch.Tensor]) -> torch.Tensor:
        """The same at every length of ranking, [len(moved), J, T] for so many embeddings [T, K]."""
        counts = torch.zeros(len(moved), len(self.bars.ks), len(self.clean_TK), dtype=torch.int64)
        for chunk in self._chunks():
            bars = [self._bars_of(chunk, k) for k in self.bars.ks]
            for row, moved_TK in enumerate(moved):
                scores_AT = self._scores(chunk, moved_TK).float()
                for column, bar_AT in enumerate(bars):
                    counts[row, column] += (scores_AT > bar_AT).sum(0)
        return counts.double() / len(self.targets.users_AK)

    def certified_hits(self, budget: Budget, modalities: Sequence[str] = MODALITIES) -> torch.Tensor:
        """Upper bound on `hits` at k after ANY perturbation of these modalities in the budget, [T]: the share of
        anchors whose bar the target's score passes when raised by the most that is possible for them
        (docs/algorithm.md, section 7)."""
        targets = self.targets
        content_Ad = targets.content_Ad.double()
        of_both = (targets.w_v.double(), targets.v_Td.double()), (targets.w_t.double(), targets.t_Td.double())
        fused = [of_one for name, of_one in zip(MODALITIES, of_both, strict=True) if name in modalities]
        counts_T = torch.zeros(len(targets), dtype=torch.int64)
        for chunk in self._chunks():
            bonus_AT = torch.zeros(())
            for weight, rows_Td in fused:
                along_Ad = content_Ad[chunk] @ weight
                # Never below zero: who has the target keeps it where nothing is done.
                gain_AT = budget.gain(along_Ad, rows_Td).clamp(min=0)
                bonus_AT = bonus_AT + gain_AT + ROUNDING * budget.most(along_Ad)[:, None]
            # float32(s) > bar implies s > bar, so the bound needs no rounding of the scores.
            most_AT = self._scores(chunk, self.clean_TK) + bonus_AT
            counts_T += (most_AT > self._bar_AT[chunk]).sum(0)
        return counts_T.double() / len(content_Ad)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.targets.users_AK), _USERS_AT_ONCE):
            yield slice(start, start + _USERS_AT_ONCE)

    def _scores(self, chunk: slice, items_TK: torch.Tensor) -> torch.Tensor:
        return self.targets.users_AK[chunk].double() @ items_TK.double().T

    @cached_property
    def _bar_AT(self) -> torch.Tensor:
        return torch.cat([self._bars_of(chunk, self.k) for chunk in self._chunks()])

    def _bars_of(self, chunk: slice, k: int) -> torch.Tensor:
        """What a target has to pass for each of these anchors, [a, T]."""
        best_A, next_A = self.bars.at(k, chunk)
        is_best_AT = self._scores(chunk, self.clean_TK).float() >= best_A[:, None]
        return torch.where(is_best_AT, next_A[:, None], best_A[:, None])

    def mean_ranks(self, moved: list[torch.Tensor]) -> torch.Tensor:
        """Mean rank of each target over 256 of the anchors; [len(moved), T] for so many embeddings [T, K]."""
        return self.ranks(moved).double().mean(0)

    def ranks(self, moved: list[torch.Tensor]) -> torch.Tensor:
        """Rank of each target among all items, from 1, for 256 of the anchors, [R, len(moved), T]. The catalog streams
        by in tiles, each sorted for itself."""
        users_RK = self.targets.users_AK[:_RANKED_ANCHORS].double()
        moved_RM = (users_RK @ torch.cat(moved).double().T).float()
        own_RM = (users_RK @ self.clean_TK.double().T).float().repeat(1, len(moved))
        above_RM = torch.zeros(moved_RM.shape, dtype=torch.int64)
        items_NK = self.bars.items_NK
        for start in range(0, len(items_NK), _ITEMS_AT_ONCE):
            scores_Rn = (users_RK @ items_NK[start : start + _ITEMS_AT_ONCE].double().T).float().sort(dim=1).values
            above_RM += scores_Rn.shape[1] - torch.searchsorted(scores_Rn, moved_RM, right=True)
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
