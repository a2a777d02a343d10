"""An MMGCN with random weights, for tests."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.models.mmgcn import MMGCNContent, MMGCNModel, Nodes, latent_widths
from uatmc_dist.models.propagation import BipartiteGraph
from uatmc_dist.parallel.item_parallel import ItemBlock

USERS, ITEMS, D = 40, 30, 4


class RandomMMGCN(MMGCNModel):
    """A trained model without its files; float64 unless said otherwise."""

    def __init__(
        self,
        seed: int = 0,
        edges: int = 60,
        sizes: Sequence[int] = (USERS, ITEMS, D),
        known: tuple[np.ndarray, np.ndarray] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """`known`: users and items of the edges; random ones that leave item 3 and user 5 out otherwise."""
        (num_users, num_items, dim), generator = sizes, torch.Generator().manual_seed(seed)
        if known is None:
            keys = np.unique(np.random.default_rng(seed).integers(0, num_users * num_items, size=edges))
            keys = keys[(keys % num_items != 3) & (keys // num_items != 5)]
            known = keys // num_items, keys % num_items
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
        self.known = KnownPositives(*known, num_users, num_items)
        blocks = ItemBlock(num_users, 0, 1), ItemBlock(num_items, 0, 1)
        self.graph = BipartiteGraph(self.known, *blocks, torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense = MMGCNContent({"visual": 3, "text": 3}, {"visual": [], "text": []}, dim).to(dtype)
        self.dense.requires_grad_(False)
        self.identity = Nodes(normal(num_users, dim), normal(num_items, dim))
        self.preference = {name: normal(num_users, width) for name, width in latent_widths(dim).items()}
        self.v_Nd, self.t_Nd = (F.normalize(normal(num_items, dim), dim=1) for _ in range(2))
        self.users_UK, self._items_NK = self.embed(self.v_Nd, self.t_Nd)
