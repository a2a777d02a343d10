"""Targets of a promotion attack on MMGCN: their rows move, and with them everybody within three hops.

As in the published protocol each target is attacked for itself, the propagation is recomputed at every step, and so
are the anchors' bars, through which the gradient goes as well. What cannot have changed is not computed
(models/neighbourhood.py). The interface is that of Targets (attacks/base.py), with gradients in the projected rows.

Each rank has the anchors among its own users, and the scores of its own items. Of a target the moved items' rows
travel to all ranks; so do, some at a time, the rows of anchors whose bars take all items, and lists of k scores back.
Sums over anchors are added up in float64. All methods are collective.

    T  targets    A  anchors    a  those of this rank    M  items that a target moves    n  items of this rank
    d  embedding_dim    k  length of the ranking
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Evaluation
from uatmc_dist.attacks.losses import Loss
from uatmc_dist.models.neighbourhood import CleanState, Moved, Neighbourhood
from uatmc_dist.parallel.item_parallel import (
    ItemBlock,
    counts_of_ranks,
    gather_rows,
    merge_topk,
    num_ranks,
    own_rank,
    rows_asked_for,
    sum_from_owners,
    sum_over_ranks,
)
from uatmc_dist.parallel.upload import upload

_TARGETS_AT_ONCE = 8
_USERS_AT_ONCE = 1024
_SPARE = 64
"""How much longer than k the kept rankings are: where so many of a user's best items move, all are scored anew."""


@dataclass(frozen=True)
class KeptRanking:
    """The best items of each anchor of this rank in the clean catalog, and their scores, [a, L]."""

    scores_aL: torch.Tensor
    items_aL: torch.Tensor

    @classmethod
    def of(cls, state: CleanState, users_a: torch.Tensor, k: int) -> "KeptRanking":
        length = min(k + _SPARE, state.own.items.num_items)
        return cls(*best_of_all(state.users_ud[users_a], state.items_nd, state.own.items, length))


def best_of_all(
    users_ad: torch.Tensor, items_nd: torch.Tensor, block: ItemBlock, k: int, left_out: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best scores of this rank's users [a, d] among the items of all ranks but one, best first, and whose they
    are. Collective: every rank may give other users, or none; they travel some at a time."""
    at_once, counts_R = -(-_USERS_AT_ONCE // num_ranks()), counts_of_ranks(len(users_ad))
    here = None if left_out is None or not block.lo <= left_out < block.hi else left_out - block.lo
    length, scores, ids = min(k, len(items_nd)), [users_ad.new_empty(0, k)], [torch.empty(0, k, dtype=torch.int64)]
    for start in range(0, max(counts_R), at_once):
        counts = [min(max(count - start, 0), at_once) for count in counts_R]
        scores_Bn = gather_rows(users_ad[start : start + at_once], counts) @ items_nd.T
        if here is not None:
            scores_Bn[:, here] = -torch.inf
        best = scores_Bn.topk(length, dim=1)
        # A block may have fewer items than are asked for.
        scores_Bk = torch.nn.functional.pad(best.values, (0, k - length), value=-torch.inf)
        ids_Bk = torch.nn.functional.pad(best.indices + block.lo, (0, k - length))
        mine = slice(sum(counts[: own_rank()]), sum(counts[: own_rank() + 1]))
        for kept, of_all in zip((scores, ids), merge_topk(scores_Bk, ids_Bk), strict=True):
            kept.append(of_all[mine].to(kept[0].device))
    return torch.cat(scores), torch.cat(ids).to(users_ad.device)


@dataclass(frozen=True)
class Margins:
    """Scores of one target for this rank's anchors, the k-th best scores among the other items, and whose they are."""

    score_a: torch.Tensor
    best_ak: torch.Tensor
    """The k best scores among the other items, best first; the last is the bar."""
    at_bar_a: torch.Tensor
    moved_a: torch.Tensor
    """Whether the anchor has moved."""
    users_ad: torch.Tensor
    target_d: torch.Tensor
    items_nd: torch.Tensor
    moved_items_Md: torch.Tensor
    """Of all ranks."""

    @property
    def bar_a(self) -> torch.Tensor:
        return self.best_ak[:, -1]


class MeanMargin:
    """The mean margin itself, as a loss."""

    def value_and_slope(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return excess, torch.ones_like(excess)


@dataclass(frozen=True)
class GraphTargets:
    state: CleanState
    anchors_A: torch.Tensor
    items_T: torch.Tensor
    clean_Td: Deltas
    """v and t of each of them."""
    k: int
    others_held: bool
    """Nobody but the target moves: neither users nor bars."""
    kept: KeptRanking
    rounds: int = 1
    """How often each target is there, one whole round after the other: several starts of one attack at once."""
    neighbourhoods: dict[int, Neighbourhood] = field(default_factory=dict)

    @classmethod
    def of(
        cls, state: CleanState, anchors_A: torch.Tensor, items_T: torch.Tensor, k: int, others_held: bool
    ) -> "GraphTargets":
        items, users = state.own.items, state.own.users
        both_n2d = torch.cat([state.z["visual"], state.z["text"]], dim=1)
        own_rows = lambda ids_m: both_n2d[upload(ids_m - items.lo, state.device)]  # noqa: E731
        v_Td, t_Td = sum_from_owners(own_rows, items_T, items).chunk(2, dim=1)
        own_a = anchors_A[users.positions_of_own(anchors_A)] - users.lo
        kept = KeptRanking.of(state, upload(own_a, state.device), k)
        return cls(state, anchors_A, items_T, (v_Td, t_Td), k, others_held, kept)

    @cached_property
    def positions_a(self) -> torch.Tensor:
        """Of this rank's anchors among all."""
        return self.state.own.users.positions_of_own(self.anchors_A)

    @cached_property
    def places_a(self) -> torch.Tensor:
        """Where they are among this rank's users."""
        return self.anchors_A[self.positions_a] - self.state.own.users.lo

    @cached_property
    def users_a(self) -> torch.Tensor:
        """The same where the model is."""
        return upload(self.places_a, self.state.device)

    def __len__(self) -> int:
        return self.rounds * len(self.items_T)

    @property
    def v_Td(self) -> torch.Tensor:
        return self.clean_Td[0].repeat(self.rounds, 1)

    @property
    def t_Td(self) -> torch.Tensor:
        return self.clean_Td[1].repeat(self.rounds, 1)

    def zeros(self) -> Deltas:
        return torch.zeros_like(self.v_Td), torch.zeros_like(self.t_Td)

    def repeated(self, times: int) -> "GraphTargets":
        return replace(self, rounds=self.rounds * times)

    def held(self) -> "GraphTargets":
        """The same where nobody but the target moves."""
        return replace(self, others_held=True, neighbourhoods={})

    def chosen(self, index: torch.Tensor) -> "GraphTargets":
        v_Td, t_Td = (rows_Td[index.to(rows_Td.device)] for rows_Td in self.clean_Td)
        return replace(self, items_T=self.items_T[index], clean_Td=(v_Td, t_Td), rounds=1, neighbourhoods={})

    def in_rows(self, pull_T2d: torch.Tensor) -> Deltas:
        visual, text = pull_T2d.chunk(2, dim=1)
        return visual, text

    def ascend(self, deltas: Deltas, pull_T2d: torch.Tensor, budget: Budget, step: float | torch.Tensor) -> Deltas:
        visual, text = self.in_rows(pull_T2d)
        return (
            budget.ascend(deltas[0], visual, self.v_Td, step),
            budget.ascend(deltas[1], text, self.t_Td, step),
        )

    def random_deltas(self, budget: Budget, generator: torch.Generator) -> Deltas:
        drawn = torch.randn(len(self), 2 * self.v_Td.shape[1], generator=generator)
        return self.ascend(self.zeros(), drawn.to(self.v_Td.device), budget, 1.0)

    def project(self, deltas: Deltas, budget: Budget) -> Deltas:
        return budget.project(deltas[0], self.v_Td), budget.project(deltas[1], self.t_Td)

    def best_mean_direction(self, budget: Budget) -> Deltas:
        """One full step along the gradient of the mean margin."""
        start = self.zeros()
        return self.ascend(start, self.evaluate(start, MeanMargin()).pull_Td, budget, 1.0)

    def typical_reach(self, budget: Budget) -> float:
        """The median change of an anchor's score that `best_mean_direction` makes of the first targets."""
        few = self.chosen(torch.arange(min(_TARGETS_AT_ONCE, len(self.items_T))))
        before_TA, after_TA = few._scores(few.zeros()), few._scores(few.best_mean_direction(budget))
        return max(float((after_TA - before_TA).abs().median()), torch.finfo(torch.float32).tiny)

    def _scores(self, deltas: Deltas) -> torch.Tensor:
        """Of all anchors, in whatever order."""
        scores_Ta = torch.stack([margins.score_a for _, margins in self.margins(deltas)])
        return gather_rows(scores_Ta.T, counts_of_ranks(scores_Ta.shape[1]))

    def evaluate(self, deltas: Deltas, loss: Loss) -> Evaluation:
        """As Targets.evaluate; `pull_Td` is the gradient in v and t, [T, 2d]."""
        found_TX = deltas[0].new_zeros(len(self), 2 + 2 * deltas[0].shape[1], dtype=torch.float64)
        for part, moved in self._parts():
            leaves = [delta[part].detach().requires_grad_() for delta in deltas]
            rows_nd = moved.rows(self._z(part, leaves))
            cotangent_nd = torch.zeros_like(rows_nd)
            for one in moved.targets:
                leaf_md = rows_nd[one.rows].detach().requires_grad_()
                margins = self._margins(one, leaf_md)
                excess_a = (margins.score_a - margins.bar_a).detach()
                value_a, slope_a = loss.value_and_slope(excess_a)
                found_TX[part.start + one.target, 0] = value_a.double().sum()
                found_TX[part.start + one.target, 1] = 0.5 * (1 + excess_a.sign()).double().sum()
                pulled = self._pulled(one, margins, slope_a / len(self.anchors_A))
                (cotangent_nd[one.rows],) = torch.autograd.grad(pulled, leaf_md)
            # Zeros for a modality that the catalog lacks.
            pulls = torch.autograd.grad(rows_nd, leaves, cotangent_nd, allow_unused=True, materialize_grads=True)
            found_TX[part, 2:] = torch.cat(pulls, dim=1).double()
        found_TX = sum_over_ranks(found_TX)
        found_TX[:, :2] /= len(self.anchors_A)
        found_TX = found_TX.to(deltas[0].dtype)
        return Evaluation(found_TX[:, 0], found_TX[:, 1], found_TX[:, 2:])

    @torch.no_grad()
    def hits(self, deltas: Deltas) -> torch.Tensor:
        """Share of anchors that have the target among their k best items, [T]."""
        counts_T = torch.stack([(margins.score_a > margins.bar_a).sum() for _, margins in self.margins(deltas)])
        return (sum_over_ranks(counts_T.double()) / len(self.anchors_A)).to(deltas[0].dtype)

    @torch.no_grad()
    def margins(self, deltas: Deltas) -> Iterator[tuple[int, Margins]]:
        """(index of the target, its margins), one after the other."""
        for part, moved in self._parts():
            rows_nd = moved.rows(self._z(part, [delta[part] for delta in deltas]))
            for one in moved.targets:
                yield part.start + one.target, self._margins(one, rows_nd[one.rows])

    def _parts(self) -> Iterator[tuple[slice, Neighbourhood]]:
        """Some targets at a time, and what they move."""
        for number in range(self.rounds):
            for start in range(0, len(self.items_T), _TARGETS_AT_ONCE):
                items = self.items_T[start : start + _TARGETS_AT_ONCE]
                if start not in self.neighbourhoods:
                    self.neighbourhoods[start] = Neighbourhood(self.state, items, self.others_held)
                first = number * len(self.items_T) + start
                yield slice(first, first + len(items)), self.neighbourhoods[start]

    def _z(self, part: slice, deltas: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"visual": self.v_Td[part] + deltas[0], "text": self.t_Td[part] + deltas[1]}

    def _margins(self, one: Moved, rows_md: torch.Tensor) -> Margins:
        """`rows_md`: of this rank's moved nodes; scores, users and the moved items' rows are differentiable in them."""
        state, device = self.state, self.state.device
        user_rows, item_rows = rows_md.split([len(one.users_m), len(one.items_m)])
        moved_items_Md = gather_rows(item_rows, one.counts_R)
        place_u = torch.full((len(state.users_ud),), -1)
        place_u[one.users_m] = torch.arange(len(one.users_m))
        place_a = place_u[self.places_a]
        moved_a = place_a >= 0
        moved_s, place_s = (upload(index, device) for index in (moved_a.nonzero().squeeze(1), place_a[moved_a]))
        users_ad = state.users_ud[self.users_a].index_copy(0, moved_s, user_rows[place_s])
        moved_a = upload(moved_a, device)
        items_nd = state.items_nd.index_copy(0, one.items_m, item_rows.detach())
        target_d = moved_items_Md[one.place_of_target]
        with torch.no_grad():
            best_ak, at_bar_a = self._bars(one, users_ad, moved_a, moved_items_Md, items_nd)
        return Margins(users_ad @ target_d, best_ak, at_bar_a, moved_a, users_ad, target_d, items_nd, moved_items_Md)

    def _bars(
        self,
        one: Moved,
        users_ad: torch.Tensor,
        moved_a: torch.Tensor,
        moved_items_Md: torch.Tensor,
        items_nd: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best scores among the other items [a, k], and the item that has the k-th [a].

        Of the anchors that have not moved it is among the best of their kept ranking that have not moved either and
        the items that have; unless too few of the ranking are left, which, as for those who moved, takes all items.
        """
        block = self.state.own.items
        is_moved_N = torch.zeros(block.num_items, dtype=torch.bool, device=self.state.device)
        is_moved_N[one.all_items_M] = True
        stale_aL = is_moved_N[self.kept.items_aL]
        whole_a = moved_a | ((~stale_aL).sum(1) < self.k)
        best_ak, at_bar_a = users_ad.new_empty(len(users_ad), self.k), torch.empty_like(self.users_a)
        some_s, whole_w = (~whole_a).nonzero().squeeze(1), whole_a.nonzero().squeeze(1)
        if len(some_s):
            kept = self.kept.scores_aL[some_s].masked_fill(stale_aL[some_s], -torch.inf)
            moved_sM = users_ad[some_s] @ moved_items_Md.T
            moved_sM[:, one.place_of_target] = -torch.inf
            best = torch.cat([kept, moved_sM], dim=1).topk(self.k, dim=1)
            ids = torch.cat([self.kept.items_aL[some_s], one.all_items_M.expand(len(some_s), -1)], dim=1)
            best_ak[some_s], at_bar_a[some_s] = best.values, ids.gather(1, best.indices[:, -1:]).squeeze(1)
        scores_wk, ids_wk = best_of_all(users_ad[whole_w], items_nd, block, self.k, one.item)
        best_ak[whole_w], at_bar_a[whole_w] = scores_wk, ids_wk[:, -1]
        return best_ak, at_bar_a

    def _pulled(self, one: Moved, margins: Margins, slope_a: torch.Tensor) -> torch.Tensor:
        """sum_a slope_a (score_a - bar_a), but for what does not depend on moved rows; differentiable in them."""
        state, users_ad = self.state, margins.users_ad
        place_a = torch.searchsorted(one.all_items_M, margins.at_bar_a).clamp(max=len(one.all_items_M) - 1)
        below_moved_a = one.all_items_M[place_a] == margins.at_bar_a
        below_s = below_moved_a.nonzero().squeeze(1)
        rest_s = (margins.moved_a & ~below_moved_a).nonzero().squeeze(1)
        block = state.own.items
        rest_sd = rows_asked_for(
            lambda ids_m: state.items_nd[ids_m - block.lo], margins.at_bar_a[rest_s], block, _USERS_AT_ONCE
        )
        pulled = (slope_a * margins.score_a).sum()
        for bar_s, rows_sd in ((below_s, margins.moved_items_Md[place_a[below_s]]), (rest_s, rest_sd)):
            pulled = pulled - (slope_a[bar_s] * (users_ad[bar_s] * rows_sd).sum(1)).sum()
        return pulled
