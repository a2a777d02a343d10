"""Users as the bags of items that they have bought (docs/algorithm.md, section 1.1).

A bag's weight is |H|^(-1/2), so that the pooled vector neither grows with the history nor vanishes with it.

    m  bags    E  entries of all of them
"""

from dataclasses import dataclass

import torch

from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.parallel.upload import upload
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

    def pooled(self, rows_nK: torch.Tensor, lo: int = 0) -> torch.Tensor:
        """Weighted sums [m, K] of a table's rows [lo, lo + n), which have all of the entries; in float64, so that what
        is rounded to float32 afterwards does not depend on the order of the sums."""
        ids_n, place_E = self.items_E.unique(return_inverse=True)
        if not len(ids_n):
            return rows_nK.new_zeros(len(self.lengths_m), rows_nK.shape[1], dtype=torch.float64)
        offsets_m = self.lengths_m.cumsum(0) - self.lengths_m
        index_n, place_E, offsets_m, weights_E = (
            upload(given, rows_nK.device) for given in (ids_n - lo, place_E, offsets_m, self.weights_E.double())
        )
        return torch.nn.functional.embedding_bag(
            place_E, rows_nK[index_n].double(), offsets_m, mode="sum", per_sample_weights=weights_E
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
    known: KnownPositives,
    history_NK: torch.Tensor,
    num_users: int,
    own_UK: torch.Tensor | None = None,
    at_once: int = 1 << 14,
) -> torch.Tensor:
    """Pooled vectors [U, K] of all users, a block of them at a time; `own_UK` are added, where users have rows as
    well."""
    users_UK = history_NK.new_empty(num_users, history_NK.shape[1])
    for start in range(0, num_users, at_once):
        users_m = torch.arange(start, min(start + at_once, num_users))
        pooled_mK = bags_of_users(known, users_m).pooled(history_NK)
        users_UK[start : start + at_once] = pooled_mK if own_UK is None else pooled_mK + own_UK[users_m]
    return users_UK
