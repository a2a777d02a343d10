"""Beyond accuracy: how much of the catalog is recommended, how evenly, and what becomes of cold items."""

import math

import numpy as np
import torch

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.ranking import RankedUsers

K = 20
"""Length of the lists that are counted."""
COLD_BELOW = 5
"""An item with fewer training interactions is cold."""
BEYOND = tuple(f"{name}@{K}" for name in ("coverage", "gini", "cold_share", "cold_recall"))


class BeyondAccuracy:
    """Counts the recommended items of one split, batch after batch of users; memory is linear in items.

    Its `add` is what `rank_split` takes as on_ranked.
    """

    def __init__(self, catalog: Catalog, split: str) -> None:
        trained = np.bincount(catalog.split("train")[1], minlength=catalog.num_items)
        self._is_cold_N = torch.from_numpy(trained < COLD_BELOW)
        users, items = catalog.split(split)
        cold = self._is_cold_N.numpy()[items]
        self._relevant: KnownPositives | None = None
        if cold.any():
            self._relevant = KnownPositives(users[cold], items[cold], catalog.num_users, catalog.num_items)
        self._counts_N = torch.zeros(catalog.num_items, dtype=torch.int64)
        self._recalls: list[torch.Tensor] = []

    def add(self, ranked: RankedUsers) -> None:
        items_BK = ranked.items_Bk[:, :K]
        there_BK = items_BK >= 0
        self._counts_N += torch.bincount(items_BK[there_BK], minlength=len(self._counts_N))
        if self._relevant is None:
            return
        num_relevant_B = self._relevant.num_items_of(ranked.users_B)
        users_BK = ranked.users_B[:, None].expand_as(items_BK)
        hits_BK = self._relevant.contains(users_BK.reshape(-1), items_BK.reshape(-1)).view_as(items_BK) & there_BK
        some = num_relevant_B > 0
        self._recalls.append(hits_BK.sum(1)[some].double() / num_relevant_B[some])

    def metrics(self) -> dict[str, float | None]:
        """coverage@20: share of all items that at least one user is recommended. gini@20: of the recommendations by
        item, never recommended ones included; 0 is even, 1 is a single item. cold_share@20: share of cold items among
        the recommended. cold_recall@20: recall of the relevant items that are cold, as mean over the users who have
        any; None where nobody has."""
        counts_N = self._counts_N.sort().values.double()
        num_items, total = len(counts_N), float(counts_N.sum())
        weights_N = 2 * torch.arange(1, num_items + 1, dtype=torch.float64) - num_items - 1
        recalls = torch.cat(self._recalls).tolist() if self._recalls else []
        values = (
            float((counts_N > 0).sum()) / num_items,
            float((weights_N * counts_N).sum()) / (num_items * total) if total else 0.0,
            float(self._counts_N[self._is_cold_N].sum()) / total if total else 0.0,
            math.fsum(recalls) / len(recalls) if recalls else None,
        )
        return dict(zip(BEYOND, values, strict=True))
