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
        if self._history is None:
            return self._own_rows(batch.users_B)
        bags = bags_of_pairs(self._known, batch, self._dropout)
        share_BK = self._history.own_sums(self._of_own_items(bags))
        return OnTheWay(sum_over_ranks(self._with_own_rows(share_BK, batch.users_B)))

    @torch.no_grad()
    def of_users(self, users_B: torch.Tensor) -> torch.Tensor:
        """[B, K] of some users, with whole histories: the same numbers on any number of ranks."""
        if self._history is None:
            return self._own_rows(users_B).wait()
        bags = self._of_own_items(bags_of_users(self._known, users_B))
        share_BK = bags.pooled(self._history.local_weight, self._history.block.lo)
        return sum_over_ranks(self._with_own_rows(share_BK, users_B)).float()

    def _own_rows(self, users_B: torch.Tensor) -> OnTheWay:
        assert self._rows is not None
        return gather_from_owners(self._rows.own_rows, users_B, self._rows.block)

    def _of_own_items(self, bags: Bags) -> Bags:
        """What this rank has of histories."""
        assert self._history is not None
        return bags.of_items(self._history.block.lo, self._history.block.hi)

    def _with_own_rows(self, share_BK: torch.Tensor, users_B: torch.Tensor) -> torch.Tensor:
        """Where users have rows as well, those of this rank are added."""
        if self._rows is None:
            return share_BK
        mine_m = self._rows.block.positions_of_own(users_B)
        rows_mK = self._rows.own_rows(users_B[mine_m]).to(share_BK.dtype)
        return share_BK.index_add(0, upload(mine_m, share_BK.device), rows_mK)
