"""What an attack on MMGCN is measured on, and the judge of what it reaches: exact hits, in float64.

T  targets    A  anchors    J  lengths of ranking    d  embedding_dim
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.graph import GraphTargets
from uatmc_dist.models.neighbourhood import CleanState

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
    def _judged(self) -> dict[int, GraphTargets]:
        """At each length of ranking."""
        given = self.states.exact, self.anchors_A, self.items_T
        return {k: GraphTargets.of(*given, k, self.others_held) for k in self.ks}

    @property
    def clean(self) -> Deltas:
        return self.moved(self.targets.zeros(), Budget(1.0, "l2"))

    def moved(self, deltas: Deltas, budget: Budget) -> Deltas:
        """In float64, projected once more."""
        return self._judged[self.k].project((deltas[0].double(), deltas[1].double()), budget)

    def hits(self, moved: Deltas) -> torch.Tensor:
        """Share of anchors with the target in their top k, [T] float64."""
        return self._hits(moved, self.k)

    def _hits(self, moved: Deltas, k: int) -> torch.Tensor:
        margins = (margins for _, margins in self._judged[k].margins(moved))
        shares = [(one.score_A.float() > one.bar_A.float()).sum() for one in margins]
        return torch.stack(shares).double() / len(self.anchors_A)

    def hits_by_length(self, moved: list[Deltas]) -> torch.Tensor:
        """The same at every length of ranking, [len(moved), J, T]."""
        return torch.stack([torch.stack([self._hits(one, k) for k in self.ks]) for one in moved])

    def mean_ranks(self, moved: list[Deltas]) -> torch.Tensor:
        """Mean rank of each target among all items, from 1, over 256 of the anchors; [len(moved), T]."""
        ranks = torch.empty(len(moved), len(self.items_T), dtype=torch.float64)
        for row, one in enumerate(moved):
            for index, margins in self._judged[self.k].margins(one):
                scores_RN = (margins.users_Ad[:_RANKED_ANCHORS] @ margins.items_Nd.T).float()
                own_R = margins.score_A[:_RANKED_ANCHORS, None].float()
                above_RN = scores_RN > own_R
                above_RN[:, self.items_T[index]] = False
                ranks[row, index] = 1 + above_RN.sum(1).double().mean()
        return ranks

    def certified_hits(self, budget: Budget) -> None:
        """There is no exact certificate: scores are not linear in the features."""
        return None
