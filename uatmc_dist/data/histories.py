"""Users as the bags of items that they have bought (docs/algorithm.md, section 1.1).

A bag's weight is |H|^(-1/2), so that the pooled vector neither grows with the history nor vanishes with it.

    m  bags    E  entries of all of them
"""

from dataclasses import dataclass

import torch

from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.seeding import generator

_DROPOUT = 1
"""Last word of the seed of the draws: the negatives of a batch have its other words."""


@dataclass(frozen=True)
class Bags:
    """Jagged: bag i holds the next `lengths_m[i]` entries; an empty one pools to zeros."""

    items_E: torch.Tensor
    lengths_m: torch.Tensor
    weights_E: torch.Tensor

    @classmethod
    def of(cls, rows_E: torch.Tensor, items_E: torch.Tensor, num_bags: int) -> "Bags":
        """From each entry's bag, ascending, and item."""
        lengths_m = torch.bincount(rows_E, minlength=num_bags)
        return cls(items_E, lengths_m, lengths_m.clamp(min=1).float().rsqrt()[rows_E])

    def of_items(self, lo: int, hi: int) -> "Bags":
        """The entries whose items are in [lo, hi), of as many bags, with the weights that they have here."""
        kept_E = (self.items_E >= lo) & (self.items_E < hi)
        row_E = torch.repeat_interleave(self.lengths_m)
        lengths_m = torch.bincount(row_E[kept_E], minlength=len(self.lengths_m))
        return Bags(self.items_E[kept_E], lengths_m, self.weights_E[kept_E])

    def pooled(self, rows_NK: torch.Tensor) -> torch.Tensor:
        """Weighted sums [m, K] of a table that is here as a whole."""
        offsets_m = self.lengths_m.cumsum(0) - self.lengths_m
        weights_E = self.weights_E.to(rows_NK.dtype)
        return torch.nn.functional.embedding_bag(
            self.items_E, rows_NK, offsets_m, mode="sum", per_sample_weights=weights_E
        )


def bags_of_users(known: KnownPositives, users_m: torch.Tensor) -> Bags:
    """Whole histories: what a trained model ranks with."""
    return Bags.of(*known.entries(users_m), len(users_m))


def bags_of_pairs(known: KnownPositives, batch: Batch, dropout: float) -> Bags:
    """Histories of the pairs of a batch: each without its positive, which would give the answer away, and without a
    random share `dropout` of the rest. The same draws on any number of ranks."""
    rows_E, items_E = known.entries(batch.users_B)
    kept_E = items_E != batch.positives_B[rows_E]
    if dropout:
        kept_E &= torch.rand(len(rows_E), generator=generator(*batch.seed, _DROPOUT)) >= dropout
    return Bags.of(rows_E[kept_E], items_E[kept_E], len(batch))


def pooled_users(
    known: KnownPositives, history_NK: torch.Tensor, num_users: int, at_once: int = 1 << 14
) -> torch.Tensor:
    """Pooled vectors [U, K] of all users, a block of them at a time."""
    users_UK = history_NK.new_empty(num_users, history_NK.shape[1])
    for start in range(0, num_users, at_once):
        users_m = torch.arange(start, min(start + at_once, num_users))
        users_UK[start : start + at_once] = bags_of_users(known, users_m).pooled(history_NK)
    return users_UK
