"""Anchor users of an attack, shared out over the ranks: rows stay where they are, and sums over anchors travel.

A  anchors    a  anchors of this rank
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from uatmc_dist.parallel.item_parallel import num_ranks, sum_over_ranks

_PIECE = 1024


@dataclass(frozen=True)
class Anchors:
    """Which of `count` anchors this rank has: of pieces of 1,024 each rank's in turn, so that what is computed piece by
    piece is the same on any number of ranks."""

    count: int
    rank: int = 0
    size: int = 1

    @classmethod
    def over_ranks(cls, count: int) -> "Anchors":
        """Of this process's group; all of them where none was joined."""
        return cls(count, dist.get_rank() if num_ranks() > 1 else 0, num_ranks())

    @cached_property
    def positions_a(self) -> torch.Tensor:
        """Of this rank's anchors among all."""
        everyone_A = torch.arange(self.count)
        return everyone_A[everyone_A // _PIECE % self.size == self.rank]

    def pieces(self) -> Iterator[slice]:
        """Of this rank's anchors."""
        for start in range(0, len(self.positions_a), _PIECE):
            yield slice(start, start + _PIECE)

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks. Collective, as are all methods below."""
        return sum_over_ranks(partial) if self.size > 1 else partial

    def mean(self, partial: torch.Tensor) -> torch.Tensor:
        """Of a sum over this rank's anchors, in float64."""
        return self.total(partial.double()) / self.count

    def gathered(self, values_a: torch.Tensor) -> torch.Tensor:
        """A value of each anchor, or several, on every rank: [A, …]."""
        if self.size == 1:
            return values_a
        spread = values_a.new_zeros(self.count, *values_a.shape[1:])
        spread[self.positions_a.to(values_a.device)] = values_a
        return self.total(spread)

    def rows_of(self, rows_aK: torch.Tensor, chosen_C: torch.Tensor) -> torch.Tensor:
        """Rows of these anchors, whoever has them: [C, K]."""
        device = rows_aK.device
        if self.size == 1:
            return rows_aK[chosen_C.to(device)]
        chosen_C = chosen_C.cpu()
        mine_m = (chosen_C // _PIECE % self.size == self.rank).nonzero().squeeze(1)
        row_m = torch.searchsorted(self.positions_a, chosen_C[mine_m])
        found_CK = rows_aK.new_zeros(len(chosen_C), rows_aK.shape[1])
        found_CK[mine_m.to(device)] = rows_aK[row_m.to(device)]
        return self.total(found_CK)
