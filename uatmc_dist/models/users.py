"""The user vectors in training: a row of the user's own, the pooled rows of his history, or both."""

import torch

from uatmc_dist.config import Config
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.histories import Bags, bags_of_pairs, bags_of_users
from uatmc_dist.models.tables import ShardedBags, ShardedTable
from uatmc_dist.parallel.item_parallel import batch_slice, share_of_batch


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

    def of_pairs(self, batch: Batch) -> torch.Tensor:
        """[m, K] for this rank's slice of a batch, positives left out of the histories."""
        mine = batch_slice(len(batch))
        bags = None if self._history is None else bags_of_pairs(self._known, batch, mine, self._dropout)
        return self._summed(batch.users_B[mine], bags, len(batch))

    def of_users(self, users_B: torch.Tensor) -> torch.Tensor:
        """[m, K] for this rank's slice of some users, with whole histories."""
        users_m = users_B[batch_slice(len(users_B))]
        bags = None if self._history is None else bags_of_users(self._known, users_m)
        return self._summed(users_m, bags, len(users_B))

    def _summed(self, users_m: torch.Tensor, bags: Bags | None, batch_size: int) -> torch.Tensor:
        parts = [] if self._rows is None else [self._rows.lookup(users_m)]
        if self._history is not None:
            assert bags is not None
            parts.append(self._history.pool(bags, share_of_batch(batch_size)))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
