"""What an objective is, and what those share in which every item is a negative of every pair."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock, Places
from uatmc_dist.parallel.upload import upload

Seen = tuple[torch.Tensor, torch.Tensor]

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
        self._ids_n = torch.arange(block.lo, block.hi)
        self._seen_of: tuple[Batch, Seen, Seen] | None = None

    def rows(self, batch: Batch) -> ActiveRows:
        return ActiveRows(self._ids_n, self._block.lo)

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.positives_B]

    def _seen(self, batch: Batch, device: torch.device) -> Seen | None:
        """Known positives of a batch's users in this block, CSR; looked up and copied once a batch."""
        if not self._exclude:
            return None
        if self._seen_of is None or self._seen_of[0] is not batch:
            offsets, columns = self._known.within(batch.users_B, self._block.lo, self._block.hi)
            self._seen_of = batch, (upload(offsets, device), upload(columns, device)), (offsets, columns)
        return self._seen_of[1]

    def _rounded(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._score_dtype is None else rows.to(self._score_dtype)

    def _weights(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        weigh: Callable[[slice, torch.Tensor], torch.Tensor],
        places: Places,
        positive_weight_B: torch.Tensor,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """`score_weights`. `weigh(items, scores_Bn)`: of a tile's scores, positives apart; `places` and
        `positive_weight_B`: active row and weight of the pairs' positives."""
        device, known = users_BK.device, None
        if self._seen(batch, device) is not None:
            assert self._seen_of is not None
            offsets, columns = self._seen_of[2]
            known = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff()), columns
        for tile in tiles(len(items_nK), len(users_BK)):
            weights_Bn = weigh(tile, users_BK @ items_nK[tile].T)
            if known is not None:
                pairs, columns = inside(known, tile, device)
                weights_Bn[pairs, columns] = 0
            pairs, columns = inside(places.planned, tile, device)
            weights_Bn[pairs, columns] = positive_weight_B[pairs]
            yield tile, weights_Bn


def tiles(num_items: int, num_pairs: int) -> Iterator[slice]:
    """Items a few million scores at a time."""
    size = max(1, _SCORES_AT_ONCE // max(num_pairs, 1))
    for start in range(0, num_items, size):
        yield slice(start, min(start + size, num_items))


def inside(planned: Seen, tile: slice, device: torch.device) -> Seen:
    """Of entries (pairs, items) on the CPU those of a tile: (pairs, columns in the tile) on the device."""
    pairs, items = planned
    kept = (items >= tile.start) & (items < tile.stop)
    return upload(pairs[kept], device), upload(items[kept] - tile.start, device)
