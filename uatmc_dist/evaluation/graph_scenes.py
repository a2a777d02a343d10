"""What an attack on MMGCN is measured on, and the judge of what it reaches: exact hits, in float64.

T  targets    A  anchors    R  ranked anchors    J  lengths of ranking    d  embedding_dim
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from uatmc_dist.adversary.budget import Ball, Budget, Deltas
from uatmc_dist.attacks.graph import GraphTargets
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.evaluation.scenes import RANKED_ANCHORS
from uatmc_dist.models.neighbourhood import CleanState
from uatmc_dist.parallel.item_parallel import sum_over_ranks
from uatmc_dist.parallel.upload import upload


@dataclass(frozen=True)
class GraphStates:
    """Clean activations, to attack in float32 and to judge in float64."""

    fast: CleanState
    exact: CleanState


@dataclass(frozen=True)
class GraphScene:
    """Targets and anchors of one seed and stratum (evaluation/scenes.py, Scene)."""

    targets: GraphTargets
    judged: GraphTargets
    """The same in float64 and at the longest ranking; shorter ones begin it."""
    k: int
    ks: tuple[int, ...]

    @classmethod
    def of(
        cls, states: GraphStates, anchors_A: torch.Tensor, items_T: torch.Tensor, k: int, ks: tuple[int, ...]
    ) -> "GraphScene":
        """Everybody in reach moves along."""
        targets = GraphTargets.of(states.fast, anchors_A, items_T, k, others_held=False)
        return cls(targets, GraphTargets.of(states.exact, anchors_A, items_T, ks[-1], others_held=False), k, ks)

    def held(self) -> "GraphScene":
        """The same with everybody else held fixed."""
        return replace(self, targets=self.targets.held(), judged=self.judged.held())

    def alone(self, index: int) -> "GraphScene":
        """With one of the targets."""
        one = torch.tensor([index])
        return replace(self, targets=self.targets.chosen(one), judged=self.judged.chosen(one))

    @property
    def suffix(self) -> str:
        """Of the attacks' names in reports."""
        return "_held" if self.targets.others_held else ""

    @property
    def clean(self) -> Deltas:
        return self.moved(self.targets.zeros(), Ball(1.0, "l2"))

    def moved(self, deltas: Deltas, budget: Budget) -> Deltas:
        """In float64, projected once more."""
        return self.judged.project((deltas[0].double(), deltas[1].double()), budget)

    def hits(self, moved: Deltas) -> torch.Tensor:
        """Share of anchors with the target in their top k, [T] float64."""
        return self._hits_by_length(moved)[self.ks.index(self.k)]

    def hits_by_length(self, moved: list[Deltas]) -> torch.Tensor:
        """The same at every length of ranking, [len(moved), J, T]."""
        return torch.stack([self._hits_by_length(one) for one in moved])

    def _hits_by_length(self, moved: Deltas) -> torch.Tensor:
        judged = self.judged
        counts_JT = torch.zeros(len(self.ks), len(judged), dtype=torch.float64, device=judged.state.device)
        for index, margins in judged.margins(moved):
            score_a, best_ak = margins.score_a.float(), margins.best_ak.float()
            for row, k in enumerate(self.ks):
                counts_JT[row, index] = (score_a > best_ak[:, k - 1]).sum()
        return sum_over_ranks(counts_JT) / len(judged.anchors_A)

    def mean_ranks(self, moved: list[Deltas]) -> torch.Tensor:
        """Mean rank of each target over 256 of the anchors; [len(moved), T]."""
        return self.ranks(moved).mean(0)

    def ranks(self, moved: list[Deltas]) -> torch.Tensor:
        """Rank of each target among all items, from 1, for 256 of the anchors, [R, len(moved), T] float64."""
        judged, block = self.judged, self.judged.state.own.items
        ranked = min(RANKED_ANCHORS, len(judged.anchors_A))
        mine_r = (judged.positions_a < ranked).nonzero().squeeze(1)
        ranked_r, mine_r = (upload(index, judged.state.device) for index in (judged.positions_a[mine_r], mine_r))
        above = judged.v_Td.new_zeros(ranked, len(moved), len(judged))
        for column, one in enumerate(moved):
            for index, margins in judged.margins(one):
                users_Rd = above.new_zeros(ranked, margins.users_ad.shape[1])
                users_Rd[ranked_r] = margins.users_ad[mine_r]
                users_Rd = sum_over_ranks(users_Rd)
                own_R = (users_Rd @ margins.target_d).float()
                above_Rn = (users_Rd @ margins.items_nd.T).float() > own_R[:, None]
                item = int(judged.items_T[index])
                if block.lo <= item < block.hi:
                    above_Rn[:, item - block.lo] = False
                above[:, column, index] = above_Rn.sum(1)
        return 1 + sum_over_ranks(above)

    def certified_hits(self, budget: Budget, modalities: Sequence[str] = MODALITIES) -> None:
        """There is no exact certificate: scores are not linear in the features."""
        return None
