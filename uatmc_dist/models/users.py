"""The user vectors in training: a row of the user's own, the pooled rows of his history, or both."""

import torch

from uatmc_dist.config import Config
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.histories import Bags, bags_of_pairs, bags_of_users
from uatmc_dist.models.tables import ShardedBags, ShardedTable
from uatmc_dist.parallel.item_parallel import OnTheWay, gather_from_owners, sum_over_ranks
from uatmc_dist.parallel.upload import upload


class UserVectors:
    """p_u of docs/algorithm.md, section 1.1. Each call is a collective; one with gradients a step."""

    def __init__(self, config: Config, num_users: int, width: int, known: KnownPositives, device: torch.device) -> None:
        kind = config.model.user
        self._known, self._dropout = known, config.training.history_dropout
        self._rows = None if kind == "history" else ShardedTable("user", num_users, width, config.tables, device)
        self._history = None if kind == "row" else ShardedBags("history", known.num_items, width, config.tables, device)

    @property
    def tables(self) -> list[ShardedTable | ShardedBags]:
        return [table for table in (self._rows, self._history) if table is not None]

    def start_from_content(self, content_nd: torch.Tensor) -> None:
        """Sets the content half of this rank's history rows; the items' blocks are the same."""
        if self._history is not None:
            self._history.local_weight[:, -content_nd.shape[1] :] = content_nd

    def of_pairs(self, batch: Batch) -> OnTheWay:
        """[B, K] of a batch, positives left out of the histories."""
        bags = None if self._history is None else bags_of_pairs(self._known, batch, self._dropout)
        return self._on_all_ranks(batch.users_B, bags)

    def of_users(self, users_B: torch.Tensor) -> OnTheWay:
        """[B, K] of some users, with whole histories."""
        bags = None if self._history is None else bags_of_users(self._known, users_B)
        return self._on_all_ranks(users_B, bags)

    def _on_all_ranks(self, users_B: torch.Tensor, bags: Bags | None) -> OnTheWay:
        """What each rank finds in its own blocks, gathered, or summed where histories lie on several ranks."""
        if self._history is None:
            assert self._rows is not None
            return gather_from_owners(self._rows.own_rows, users_B, self._rows.block)
        assert bags is not None
        block = self._history.block
        share_BK = self._history.own_sums(bags.of_items(block.lo, block.hi))
        if self._rows is not None:
            mine_m = self._rows.block.positions_of_own(users_B)
            share_BK = share_BK.index_add(0, upload(mine_m, share_BK.device), self._rows.own_rows(users_B[mine_m]))
        return OnTheWay(sum_over_ranks(share_BK))
