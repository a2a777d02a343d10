"""Targets of a promotion attack on MMGCN: their rows move, and with them everybody within three hops.

As in the published protocol each target is attacked for itself, the propagation is recomputed at every step, and so
are the anchors' bars, through which the gradient goes as well. What cannot have changed is not computed
(models/neighbourhood.py). The interface is that of Targets (attacks/base.py), with gradients in the projected rows.
Several ranks share the targets out; each of them has the whole model, and every sum over them is collective.

    T  targets    A  anchors    N  items    d  embedding_dim    k  length of the ranking
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Evaluation
from uatmc_dist.attacks.losses import Loss
from uatmc_dist.models.neighbourhood import CleanState, Neighbourhood
from uatmc_dist.parallel.item_parallel import num_ranks, own_rank, sum_over_ranks

_TARGETS_AT_ONCE = 8
_SPARE = 64
"""How much longer than k the kept rankings are: where so many of a user's best items move, all are scored anew."""


@dataclass(frozen=True)
class KeptRanking:
    """Each anchor's best items in the clean catalog, and their scores, [A, L]."""

    scores_AL: torch.Tensor
    items_AL: torch.Tensor

    @classmethod
    def of(cls, state: CleanState, anchors_A: torch.Tensor, k: int) -> "KeptRanking":
        length = min(k + _SPARE, state.num_items)
        parts = [(state.users_Ud[chunk] @ state.items_Nd.T).topk(length, dim=1) for chunk in anchors_A.split(1024)]
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


@dataclass(frozen=True)
class Margins:
    """Scores of one target for all anchors, the k-th best scores among the other items, and whose they are."""

    score_A: torch.Tensor
    bar_A: torch.Tensor
    at_bar_A: torch.Tensor
    best_Ak: torch.Tensor
    """The k best scores among the other items, best first; the last is the bar."""
    users_Ad: torch.Tensor
    items_Nd: torch.Tensor


class MeanMargin:
    """The mean margin itself, as a loss."""

    def value_and_slope(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return excess, torch.ones_like(excess)


@dataclass(frozen=True)
class GraphTargets:
    state: CleanState
    anchors_A: torch.Tensor
    items_T: torch.Tensor
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
        return cls(state, anchors_A, items_T, k, others_held, KeptRanking.of(state, anchors_A, k))

    def __len__(self) -> int:
        return self.rounds * len(self.items_T)

    @property
    def v_Td(self) -> torch.Tensor:
        return self.state.z["visual"][self.items_T].repeat(self.rounds, 1)

    @property
    def t_Td(self) -> torch.Tensor:
        return self.state.z["text"][self.items_T].repeat(self.rounds, 1)

    def zeros(self) -> Deltas:
        return torch.zeros_like(self.v_Td), torch.zeros_like(self.t_Td)

    def repeated(self, times: int) -> "GraphTargets":
        return replace(self, rounds=self.rounds * times)

    def held(self) -> "GraphTargets":
        """The same where nobody but the target moves."""
        return replace(self, others_held=True, neighbourhoods={})

    def chosen(self, index: torch.Tensor) -> "GraphTargets":
        return replace(self, items_T=self.items_T[index], rounds=1, neighbourhoods={})

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
        return self.ascend(self.zeros(), drawn, budget, 1.0)

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
        scores_TA = self.state.nodes_Vd.new_zeros(len(self), len(self.anchors_A))
        for index, margins in self.margins(deltas):
            scores_TA[index] = margins.score_A
        return sum_over_ranks(scores_TA)

    def evaluate(self, deltas: Deltas, loss: Loss) -> Evaluation:
        """As Targets.evaluate; `pull_Td` is the gradient in v and t, [T, 2d]."""
        value_T, hits_T = deltas[0].new_zeros(2, len(self)).unbind(0)
        pull_T2d = deltas[0].new_zeros(len(self), 2 * deltas[0].shape[1])
        for part, moved in self._parts():
            leaves = [delta[part].detach().requires_grad_() for delta in deltas]
            rows_nd = moved.rows(self._z(part, leaves))
            cotangent_nd = torch.zeros_like(rows_nd)
            for offset, mine in enumerate(_of_each(moved, len(leaves[0]))):
                index = part.start + offset
                nodes_m, rows_md = moved.nodes_n[mine], rows_nd[mine].detach()
                margins = self._margins(index, nodes_m, rows_md)
                excess_A = margins.score_A - margins.bar_A
                value_A, slope_A = loss.value_and_slope(excess_A)
                value_T[index] = value_A.mean()
                hits_T[index] = 0.5 * (1 + excess_A.sign()).mean()
                cotangent_nd[mine] = self._cotangent(index, nodes_m, margins, slope_A / len(slope_A))
            # Zeros for a modality that the catalog lacks.
            pulls = torch.autograd.grad(rows_nd, leaves, cotangent_nd, allow_unused=True, materialize_grads=True)
            pull_T2d[part] = torch.cat(pulls, dim=1)
        found_TX = sum_over_ranks(torch.cat([value_T[:, None], hits_T[:, None], pull_T2d], dim=1).detach())
        return Evaluation(found_TX[:, 0], found_TX[:, 1], found_TX[:, 2:])

    @torch.no_grad()
    def hits(self, deltas: Deltas) -> torch.Tensor:
        """Share of anchors that have the target among their k best items, [T]."""
        counts_T = deltas[0].new_zeros(len(self))
        for index, margins in self.margins(deltas):
            counts_T[index] = (margins.score_A > margins.bar_A).sum()
        return sum_over_ranks(counts_T) / len(self.anchors_A)

    @torch.no_grad()
    def margins(self, deltas: Deltas) -> Iterator[tuple[int, Margins]]:
        """(index of the target, its margins) of this rank's targets, one after the other."""
        for part, moved in self._parts():
            rows_nd = moved.rows(self._z(part, [delta[part] for delta in deltas]))
            for offset, mine in enumerate(_of_each(moved, part.stop - part.start)):
                yield part.start + offset, self._margins(part.start + offset, moved.nodes_n[mine], rows_nd[mine])

    def _parts(self) -> Iterator[tuple[slice, Neighbourhood]]:
        """Some of this rank's targets at a time, and what they move."""
        first_one, step = own_rank() * _TARGETS_AT_ONCE, num_ranks() * _TARGETS_AT_ONCE
        for number in range(self.rounds):
            for start in range(first_one, len(self.items_T), step):
                items = self.items_T[start : start + _TARGETS_AT_ONCE]
                if start not in self.neighbourhoods:
                    self.neighbourhoods[start] = Neighbourhood(self.state, items, self.others_held)
                first = number * len(self.items_T) + start
                yield slice(first, first + len(items)), self.neighbourhoods[start]

    def _z(self, part: slice, deltas: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"visual": self.v_Td[part] + deltas[0], "text": self.t_Td[part] + deltas[1]}

    def _margins(self, index: int, nodes_m: torch.Tensor, rows_md: torch.Tensor) -> Margins:
        state = self.state
        target = int(self.items_T[index % len(self.items_T)])
        is_user = nodes_m < state.num_users
        items_m, users_Ad, items_Nd = nodes_m[~is_user] - state.num_users, self._clean_users, state.items_Nd
        items_Nd = items_Nd.index_copy(0, items_m, rows_md[~is_user])
        moved_A = torch.zeros(len(self.anchors_A), dtype=torch.bool)
        if is_user.any():
            position_U = torch.full((state.num_users,), -1)
            position_U[nodes_m[is_user]] = torch.arange(int(is_user.sum()))
            position_A = position_U[self.anchors_A]
            moved_A = position_A >= 0
            users_Ad = users_Ad.index_copy(0, moved_A.nonzero().squeeze(1), rows_md[is_user][position_A[moved_A]])
        best_Ak, at_bar_A = self._bars(target, items_m, moved_A, users_Ad, items_Nd)
        return Margins(users_Ad @ items_Nd[target], best_Ak[:, -1], at_bar_A, best_Ak, users_Ad, items_Nd)

    @property
    def _clean_users(self) -> torch.Tensor:
        return self.state.users_Ud[self.anchors_A]

    def _bars(
        self,
        target: int,
        items_m: torch.Tensor,
        moved_A: torch.Tensor,
        users_Ad: torch.Tensor,
        items_Nd: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best scores among the other items [A, k], and the item that has the k-th [A].

        Of the anchors that have not moved it is among the best of their kept ranking that have not moved either and
        the items that have; unless too few of the ranking are left, which, as for those who moved, takes all items.
        """
        is_moved_N = torch.zeros(len(items_Nd), dtype=torch.bool)
        is_moved_N[items_m] = True
        stale_AL = is_moved_N[self.kept.items_AL]
        whole_A = moved_A | ((~stale_AL).sum(1) < self.k)
        best_Ak, at_bar_A = users_Ad.new_empty(len(users_Ad), self.k), torch.empty(len(users_Ad), dtype=torch.int64)
        others_m = items_m[items_m != target]
        some, whole = (~whole_A).nonzero().squeeze(1), whole_A.nonzero().squeeze(1)
        if len(some):
            kept = self.kept.scores_AL[some].masked_fill(stale_AL[some], -torch.inf)
            scores = torch.cat([kept, users_Ad[some] @ items_Nd[others_m].T], dim=1)
            best = scores.topk(self.k, dim=1)
            best_Ak[some], place = best.values, best.indices[:, -1:]
            ids = torch.cat([self.kept.items_AL[some], others_m.expand(len(some), -1)], dim=1)
            at_bar_A[some] = ids.gather(1, place).squeeze(1)
        for chunk in whole.split(1024):
            scores = users_Ad[chunk] @ items_Nd.T
            scores[:, target] = -torch.inf
            best = scores.topk(self.k, dim=1)
            best_Ak[chunk], at_bar_A[chunk] = best.values, best.indices[:, -1]
        return best_Ak, at_bar_A

    def _cotangent(self, index: int, nodes_m: torch.Tensor, margins: Margins, slope_A: torch.Tensor) -> torch.Tensor:
        """Derivative of sum_a slope_a (score_a - bar_a) in the moved rows, [m, d]."""
        state, target = self.state, int(self.items_T[index % len(self.items_T)])
        users_Ad, items_Nd, at_bar_A = margins.users_Ad, margins.items_Nd, margins.at_bar_A
        of_nodes_Vd = users_Ad.new_zeros(len(state.identity_Vd), users_Ad.shape[1])
        weighted_Ad = slope_A[:, None] * users_Ad
        of_nodes_Vd[state.num_users + target] = weighted_Ad.sum(0)
        of_nodes_Vd.index_add_(0, state.num_users + at_bar_A, weighted_Ad, alpha=-1)
        between_Ad = slope_A[:, None] * (items_Nd[target] - items_Nd[at_bar_A])
        of_nodes_Vd.index_add_(0, self.anchors_A, between_Ad)
        return of_nodes_Vd[nodes_m]


def _of_each(moved: Neighbourhood, num_targets: int) -> list[slice]:
    """The rows of each target."""
    ends = torch.bincount(moved.target_n, minlength=num_targets).cumsum(0).tolist()
    return [slice(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
