"""BPR with one uniform negative a pair, as published."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from uatmc_dist.data.batches import Batch
from uatmc_dist.models.objectives.base import content_columns, inside, tiles
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock, Places, own_share, scores_at, sum_over_ranks


class Sampled:
    """One uniform negative a pair: only the rows of the batch are touched."""

    def __init__(self, block: ItemBlock) -> None:
        self._block = block

    def rows(self, batch: Batch) -> ActiveRows:
        touched = torch.unique(torch.cat(self.ranked_items(batch)))
        first, last = torch.searchsorted(touched, torch.tensor([self._block.lo, self._block.hi])).tolist()
        return ActiveRows(touched[first:last], first)

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        assert batch.negatives_B is not None
        return [batch.positives_B, batch.negatives_B]

    def _differences(self, users: torch.Tensor, rows_n: torch.Tensor, batch: Batch, rows: ActiveRows) -> torch.Tensor:
        """<user, positive row> - <user, negative row>, complete on every rank."""
        positives, negatives = (rows.places(items_B, users.device) for items_B in self.ranked_items(batch))
        return sum_over_ranks(scores_at(users, rows_n, positives) - scores_at(users, rows_n, negatives))

    def loss(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        rows: ActiveRows,
        handicap_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        margins_B = self._differences(users_BK, items_nK, batch, rows)
        if handicap_B is not None:
            margins_B = margins_B - handicap_B
        # Every rank knows all margins; each takes its own share of the pairs into the loss.
        return F.softplus(-own_share(margins_B)).sum() / len(batch)

    @torch.no_grad()
    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        content_Bd, _ = content_columns(users_BK, tangent_nd)
        sigma_B = torch.sigmoid(self._differences(users_BK, items_nK, batch, rows))
        change_B = self._differences(content_Bd, tangent_nd, batch, rows)
        pull_Bd = (sigma_B * (1 - sigma_B) * change_B / len(batch))[:, None] * content_Bd
        hvp_nd = torch.zeros_like(tangent_nd)
        for items_B, sign in zip(self.ranked_items(batch), (1, -1), strict=True):
            places = rows.places(items_B, users_BK.device)
            hvp_nd.index_add_(0, places.index_M, pull_Bd[places.mine_M], alpha=sign)
        return hvp_nd

    @torch.no_grad()
    def score_weights(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        weights_B = torch.sigmoid(-self._differences(users_BK, items_nK, batch, rows)) / len(batch)
        places = [rows.places(items_B, users_BK.device) for items_B in self.ranked_items(batch)]
        return _dense_tiles(weights_B, places, len(items_nK))


def _dense_tiles(weights_B: torch.Tensor, places: list[Places], num_items: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Zero but for the pairs' own items."""
    for tile in tiles(num_items, len(weights_B)):
        weights_Bn = weights_B.new_zeros(len(weights_B), tile.stop - tile.start)
        for one in places:
            pairs, columns = inside(one.planned, tile, weights_B.device)
            weights_Bn[pairs, columns] += weights_B[pairs]
        yield tile, weights_Bn
