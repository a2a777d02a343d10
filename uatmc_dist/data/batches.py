"""The sampler: one global order of the training pairs, fixed by (seed, epoch), whatever the world size."""

from dataclasses import dataclass

import numpy as np
import torch

from uatmc_dist.data.catalog import Catalog
from uatmc_dist.seeding import generator

_MAX_REDRAWS = 64


@dataclass(frozen=True)
class Batch:
    """One global batch; every rank holds the same one (three int64 vectors)."""

    users_B: torch.Tensor
    positives_B: torch.Tensor
    negatives_B: torch.Tensor
    """One uniform item a pair that the user has not bought in training."""

    def __len__(self) -> int:
        return len(self.users_B)


class KnownPositives:
    """A CSR of the training items of every user."""

    def __init__(self, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> None:
        self.num_items = num_items
        keys = np.unique(users * num_items + items)
        self._keys = torch.from_numpy(keys)
        self._items = self._keys % num_items
        counts = np.bincount(keys // num_items, minlength=num_users)
        self._offsets = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))

    @classmethod
    def of_training(cls, catalog: Catalog) -> "KnownPositives":
        users, items = catalog.split("train")
        return cls(users, items, catalog.num_users, catalog.num_items)

    def contains(self, users_B: torch.Tensor, items_B: torch.Tensor) -> torch.Tensor:
        keys_B = users_B * self.num_items + items_B
        found_B = torch.searchsorted(self._keys, keys_B).clamp(max=len(self._keys) - 1)
        return self._keys[found_B] == keys_B

    def num_items_of(self, users_B: torch.Tensor) -> torch.Tensor:
        return self._offsets[users_B + 1] - self._offsets[users_B]

    def within(self, users_B: torch.Tensor, lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
        """CSR (offsets [B+1], columns) of these users' items in [lo, hi), columns counted from lo."""
        counts_B = self.num_items_of(users_B)
        rows_E = torch.repeat_interleave(torch.arange(len(users_B)), counts_B)
        first_B = counts_B.cumsum(0) - counts_B
        within_row_E = torch.arange(len(rows_E)) - first_B[rows_E]
        items_E = self._items[self._offsets[users_B][rows_E] + within_row_E]
        kept_E = (items_E >= lo) & (items_E < hi)
        offsets = torch.zeros(len(users_B) + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(rows_E[kept_E], minlength=len(users_B)).cumsum(0)
        return offsets, items_E[kept_E] - lo


class Sampler:
    """Batches of the training pairs. Any batch is made from (seed, epoch, index) alone, so that a run can go on
    at the exact pair on any number of ranks."""

    def __init__(
        self, users: np.ndarray, items: np.ndarray, known: KnownPositives, num_items: int, batch_size: int, seed: int
    ) -> None:
        self._users, self._items = torch.from_numpy(users), torch.from_numpy(items)
        self._known, self._num_items = known, num_items
        self._batch_size, self._seed = batch_size, seed
        self._order: tuple[int, torch.Tensor] | None = None

    @property
    def num_pairs(self) -> int:
        return len(self._users)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.num_pairs // self._batch_size)

    def batch(self, epoch: int, index: int) -> Batch:
        chosen = self._epoch_order(epoch)[index * self._batch_size : (index + 1) * self._batch_size]
        users_B, positives_B = self._users[chosen], self._items[chosen]
        return Batch(users_B, positives_B, self._negatives(users_B, generator(self._seed, epoch, index + 1)))

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, torch.randperm(self.num_pairs, generator=generator(self._seed, epoch, 0)))
        return self._order[1]

    def _negatives(self, users_B: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        negatives_B = torch.randint(self._num_items, users_B.shape, generator=draws)
        for _ in range(_MAX_REDRAWS):  # bounded: a user may have bought everything
            redraw = self._known.contains(users_B, negatives_B).nonzero().squeeze(1)
            if not len(redraw):
                break
            negatives_B[redraw] = torch.randint(self._num_items, redraw.shape, generator=draws)
        return negatives_B
