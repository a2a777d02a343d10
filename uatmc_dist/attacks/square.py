"""Random search without gradients, after the Square Attack (Andriushchenko et al., arXiv 1912.00049).

The attacker sees scores alone. In each query a random part of the coordinates changes, a smaller and smaller one; a
change is kept where the soft hit rate rises.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Knowledge, Targets, pick
from uatmc_dist.attacks.losses import SoftRank

_FIRST_SHARE, _TEMPERATURE = 0.5, 0.25


@dataclass(frozen=True)
class Square:
    queries: int
    name: str = "square"
    knowledge: Knowledge = "score queries"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        loss = SoftRank(_TEMPERATURE * targets.typical_reach(budget))
        best = targets.random_deltas(budget, generator)
        best_value_T = self._value(targets, best, loss)
        dim = targets.v_Td.shape[1]
        for query in range(self.queries):
            share = max(_FIRST_SHARE * (1 - query / self.queries) ** 2, 1 / (2 * dim))
            fresh = targets.random_deltas(budget, generator)
            changed = (torch.rand(2, len(targets), dim, generator=generator) < share).to(best[0].device)
            tried = targets.project(
                (torch.where(changed[0], fresh[0], best[0]), torch.where(changed[1], fresh[1], best[1])), budget
            )
            value_T = self._value(targets, tried, loss)
            better_T = value_T > best_value_T
            best_value_T, best = torch.where(better_T, value_T, best_value_T), pick(better_T, tried, best)
        yield best

    @staticmethod
    def _value(targets: Targets, deltas: Deltas, loss: SoftRank) -> torch.Tensor:
        value_T = targets.v_Td.new_zeros(len(targets), dtype=torch.float64)
        for _, excess_aT in targets.excess(deltas):
            value_T += loss.value(excess_aT).sum(0)
        return targets.anchors.mean(value_T).to(targets.v_Td.dtype)
