"""The sampler: one global order of the training pairs, fixed by (seed, epoch), whatever the world size."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from uatmc_dist.data.catalog import TRAINING, Catalog
from uatmc_dist.seeding import generator
from uatmc_dist.whole_files import replacing

_MAX_REDRAWS = 64


@dataclass(frozen=True)
class Batch:
    """One global batch; every rank holds the same one (int64 vectors)."""

    users_B: torch.Tensor
    positives_B: torch.Tensor
    negatives_B: torch.Tensor | None = None
    """One uniform item a pair that the user has not bought in training, for the objective that takes them."""
    seed: tuple[int, ...] = ()
    """Words that no other batch of the run has: what seeds the random draws of its step."""

    def __len__(self) -> int:
        return len(self.users_B)


class KnownPositives:
    """A CSR of the training items of every user, a user's items ascending."""

    def __init__(self, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> None:
        self._take(_keys(users, items, num_items), num_users, num_items)

    def _take(self, keys: np.ndarray, num_users: int, num_items: int) -> None:
        self.num_items = num_items
        self._keys = torch.from_numpy(keys)
        first_keys = np.arange(num_users + 1, dtype=np.int64) * num_items
        self._offsets = torch.from_numpy(np.searchsorted(keys, first_keys))

    @classmethod
    def of_training(cls, catalog: Catalog) -> "KnownPositives":
        """Memory-mapped where the catalog's folder can be written: the ranks of a machine share one copy."""
        keys = _kept(catalog, "known", lambda: _keys(*catalog.read_split("train"), catalog.num_items))
        known = cls.__new__(cls)
        known._take(keys, catalog.num_users, catalog.num_items)
        return known

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(user [E], item [E]) of all training pairs, user by user."""
        return self._keys // self.num_items, self._keys % self.num_items

    def counts_of_items(self) -> torch.Tensor:
        """How many users have each item, [N]."""
        return torch.bincount(self._keys % self.num_items, minlength=self.num_items)

    def contains(self, users_B: torch.Tensor, items_B: torch.Tensor) -> torch.Tensor:
        keys_B = users_B * self.num_items + items_B
        found_B = torch.searchsorted(self._keys, keys_B).clamp(max=len(self._keys) - 1)
        return self._keys[found_B] == keys_B

    def num_items_of(self, users_B: torch.Tensor) -> torch.Tensor:
        return self._offsets[users_B + 1] - self._offsets[users_B]

    def entries(self, users_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All items of these users, user by user: (index into `users_B` [E], item [E])."""
        counts_B = self.num_items_of(users_B)
        rows_E = torch.repeat_interleave(torch.arange(len(users_B)), counts_B)
        first_B = counts_B.cumsum(0) - counts_B
        within_row_E = torch.arange(len(rows_E)) - first_B[rows_E]
        return rows_E, self._keys[self._offsets[users_B][rows_E] + within_row_E] % self.num_items

    def within(self, users_B: torch.Tensor, lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
        """CSR (offsets [B+1], columns) of these users' items in [lo, hi), columns counted from lo."""
        rows_E, items_E = self.entries(users_B)
        kept_E = (items_E >= lo) & (items_E < hi)
        offsets = torch.zeros(len(users_B) + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(rows_E[kept_E], minlength=len(users_B)).cumsum(0)
        return offsets, items_E[kept_E] - lo


def _keys(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    return np.unique(users * num_items + items)


def training_pairs(catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """(users, items) of all training pairs in the catalog's order, int32; memory-mapped as the known positives are."""
    users, items = _kept(catalog, "pairs", lambda: np.stack(catalog.read_split("train")).astype(np.int32))
    return users, items


def _kept(catalog: Catalog, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What was made of the training split once, mapped from CATALOG/training; in memory where it cannot be kept."""
    file = catalog.path / TRAINING / f"{name}-{catalog.digest}.npy"
    found = _mapped(file)
    if found is None:
        made = make()
        mapped = _mapped(file) if _write(file, made) else None
        found = made if mapped is None else mapped
    return found


def _mapped(file: Path) -> np.ndarray | None:
    """None where there is no whole file. Copy-on-write, as torch takes no read-only arrays; nobody writes."""
    try:
        return np.load(file, mmap_mode="c")
    except (OSError, ValueError):
        return None


def _write(file: Path, array: np.ndarray) -> bool:
    try:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as unfinished, unfinished.open("wb") as out:
            np.save(out, array)
        return True
    except OSError:
        return False


class Sampler:
    """Batches of the training pairs. Any batch is made from (seed, epoch, index) alone, so that a run can go on
    at the exact pair on any number of ranks."""

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        known: KnownPositives,
        num_items: int,
        batch_size: int,
        seed: int,
        with_negatives: bool,
    ) -> None:
        self._users, self._items = torch.from_numpy(users), torch.from_numpy(items)
        self._known, self._num_items, self._with_negatives = known, num_items, with_negatives
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
        users_B, positives_B = self._users[chosen].long(), self._items[chosen].long()
        seed = self._seed, epoch, index + 1
        negatives_B = self._negatives(users_B, generator(*seed)) if self._with_negatives else None
        return Batch(users_B, positives_B, negatives_B, seed)

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            # The same order in either format.
            dtype = torch.int32 if self.num_pairs <= torch.iinfo(torch.int32).max else torch.int64
            order = torch.randperm(self.num_pairs, dtype=dtype, generator=generator(self._seed, epoch, 0))
            self._order = (epoch, order)
        return self._order[1]

    def _negatives(self, users_B: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        negatives_B = torch.randint(self._num_items, users_B.shape, generator=draws)
        for _ in range(_MAX_REDRAWS):  # bounded: a user may have bought everything
            redraw = self._known.contains(users_B, negatives_B).nonzero().squeeze(1)
            if not len(redraw):
                break
            negatives_B[redraw] = torch.randint(self._num_items, redraw.shape, generator=draws)
        return negatives_B
