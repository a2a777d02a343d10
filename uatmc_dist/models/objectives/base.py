"""What an objective is, and what those share in which every item is a negative of every pair."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock

_SCORES_AT_ONCE = 1 << 22


class Objective(Protocol):
    """Says which items a step touches, returns this rank's partial loss, and knows the product of its Hessian in the
    content rows with a direction (docs/algorithm.md, section 4.1)."""

    def rows(self, batch: Batch) -> ActiveRows: ...

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        """The item lists of the batch whose embedding norms are regularised."""
        ...

    def loss(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        rows: ActiveRows,
        handicap_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """This rank's partial of the global loss; differentiable twice.

        `handicap_B` is taken off each positive's score, which raises the scores of all negatives by as much.
        """
        ...

    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        """Rows n of d2L/dc2 . tangent, complete on this rank. Collective, no graph."""
        ...

    def score_weights(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """|dL/ds_bj| of every pair b and active item j, [B, tile] for one tile of items after the other. Complete on
        this rank. Collective, no graph."""
        ...


def user_moments(
    weights: Iterator[tuple[slice, torch.Tensor]], users_BK: torch.Tensor, shifts: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """For each of the content rows `shifts` [n, C] the sums over pairs of a_bj <h_b, shift_j> h_b, [n, C], where a_bj
    is |dL/ds_bj| over its largest of the item (docs/algorithm.md, section 4.3). `weights` are an objective's score
    weights, h_b the users' content halves."""
    content_BC, _ = content_columns(users_BK, shifts[0])
    moments = [torch.empty_like(shift) for shift in shifts]
    for tile, weights_Bn in weights:
        largest_n = weights_Bn.amax(0)  # no cosine depends on it, and squares of small weights would vanish
        weights_Bn = weights_Bn / largest_n.where(largest_n > 0, 1.0)
        for shift_nC, moment_nC in zip(shifts, moments, strict=True):
            moment_nC[tile] = (weights_Bn * (content_BC @ shift_nC[tile].T)).T @ content_BC
    return moments


def content_columns(rows_nK: torch.Tensor, tangent_nd: torch.Tensor) -> tuple[torch.Tensor, slice]:
    width = rows_nK.shape[1]
    columns = slice(width - tangent_nd.shape[1], width)
    return rows_nK[:, columns], columns


class AllItems:
    """What the objectives share in which every item is a negative of every pair."""

    def __init__(
        self,
        block: ItemBlock,
        known: KnownPositives,
        exclude_known_positives: bool,
        score_dtype: torch.dtype | None = None,
    ) -> None:
        """`score_dtype`: what embeddings are rounded to before they are scored; None leaves them as they are."""
        self._block, self._known, self._exclude = block, known, exclude_known_positives
        self._score_dtype = score_dtype
        self._rows = ActiveRows(torch.arange(block.lo, block.hi), block.lo)

    def rows(self, batch: Batch) -> ActiveRows:
        return self._rows

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.positives_B]

    def _seen(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self._exclude:
            return None
        offsets, columns = self._known.within(batch.users_B, self._block.lo, self._block.hi)
        return offsets.to(device, non_blocking=True), columns.to(device, non_blocking=True)

    def _rounded(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._score_dtype is None else rows.to(self._score_dtype)

    def _weights(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        weigh: Callable[[slice, torch.Tensor], torch.Tensor],
        index_B: torch.Tensor,
        positive_weight_B: torch.Tensor,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """`score_weights`. `weigh(items, scores_Bn)`: of a tile's scores, positives apart; `index_B` and
        `positive_weight_B`: active row and weight of the pairs' positives."""
        mine = (index_B >= 0).nonzero().squeeze(1)
        seen = self._seen(batch, users_BK.device)
        for tile in tiles(len(items_nK), len(users_BK)):
            weights_Bn = weigh(tile, users_BK @ items_nK[tile].T)
            if seen is not None:
                pairs, columns = _entries_in(seen, tile)
                weights_Bn[pairs, columns] = 0
            inside = mine[(index_B[mine] >= tile.start) & (index_B[mine] < tile.stop)]
            weights_Bn[inside, index_B[inside] - tile.start] = positive_weight_B[inside]
            yield tile, weights_Bn


def tiles(num_items: int, num_pairs: int) -> Iterator[slice]:
    """Items a few million scores at a time."""
    size = max(1, _SCORES_AT_ONCE // max(num_pairs, 1))
    for start in range(0, num_items, size):
        yield slice(start, min(start + size, num_items))


def _entries_in(csr: tuple[torch.Tensor, torch.Tensor], tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
    offsets, columns = csr
    pairs = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=columns.device), offsets.diff())
    kept = (columns >= tile.start) & (columns < tile.stop)
    return pairs[kept], columns[kept] - tile.start
