"""What an attack on MMGCN is measured on, and the judge of what it reaches: exact hits, in float64.

T  targets    A  anchors    J  lengths of ranking    d  embedding_dim
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from uatmc_dist.adversary.budget import Ball, Budget, Deltas
from uatmc_dist.attacks.graph import GraphTargets
from uatmc_dist.models.neighbourhood import CleanState
from uatmc_dist.parallel.item_parallel import sum_over_ranks

_RANKED_ANCHORS = 256


@dataclass(frozen=True)
class GraphStates:
    """Clean activations, to attack in float32 and to judge in float64."""

    fast: CleanState
    exact: CleanState


@dataclass(frozen=True)
class GraphScene:
    """Targets and anchors of one seed and stratum (evaluation/scenes.py, Scene)."""

    states: GraphStates
    anchors_A: torch.Tensor
    items_T: torch.Tensor
    k: int
    ks: tuple[int, ...]
    others_held: bool

    @property
    def suffix(self) -> str:
        """Of the attacks' names in reports."""
        return "_held" if self.others_held else ""

    @cached_property
    def targets(self) -> GraphTargets:
        return GraphTargets.of(self.states.fast, self.anchors_A, self.items_T, self.k, self.others_held)

    @cached_property
    def _judged(self) -> GraphTargets:
        """At the longest ranking; shorter ones begin it."""
        return GraphTargets.of(self.states.exact, self.anchors_A, self.items_T, self.ks[-1], self.others_held)

    @property
    def clean(self) -> Deltas:
        return self.moved(self.targets.zeros(), Ball(1.0, "l2"))

    def moved(self, deltas: Deltas, budget: Budget) -> Deltas:
        """In float64, projected once more."""
        return self._judged.project((deltas[0].double(), deltas[1].double()), budget)

    def hits(self, moved: Deltas) -> torch.Tensor:
        """Share of anchors with the target in their top k, [T] float64."""
        return self._hits_by_length(moved)[self.ks.index(self.k)]

    def hits_by_length(self, moved: list[Deltas]) -> torch.Tensor:
        """The same at every length of ranking, [len(moved), J, T]."""
        return torch.stack([self._hits_by_length(one) for one in moved])

    def _hits_by_length(self, moved: Deltas) -> torch.Tensor:
        counts_JT = torch.zeros(len(self.ks), len(self.items_T), dtype=torch.float64)
        for index, margins in self._judged.margins(moved):
            score_A, best_Ak = margins.score_A.float(), margins.best_Ak.float()
            for row, k in enumerate(self.ks):
                counts_JT[row, index] = (score_A > best_Ak[:, k - 1]).sum()
        return sum_over_ranks(counts_JT) / len(self.anchors_A)

    def mean_ranks(self, moved: list[Deltas]) -> torch.Tensor:
        """Mean rank of each target among all items, from 1, over 256 of the anchors; [len(moved), T]."""
        ranks = torch.zeros(len(moved), len(self.items_T), dtype=torch.float64)
        for row, one in enumerate(moved):
            for index, margins in self._judged.margins(one):
                scores_RN = (margins.users_Ad[:_RANKED_ANCHORS] @ margins.items_Nd.T).float()
                own_R = margins.score_A[:_RANKED_ANCHORS, None].float()
                above_RN = scores_RN > own_R
                above_RN[:, self.items_T[index]] = False
                ranks[row, index] = 1 + above_RN.sum(1).double().mean()
        return sum_over_ranks(ranks)

    def certified_hits(self, budget: Budget) -> None:
        """There is no exact certificate: scores are not linear in the features."""
        return None
