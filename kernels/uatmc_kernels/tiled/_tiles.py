"""The walk over item tiles that every tiled score pass shares."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype

# One B x T tile should stay in the cache while several elementwise passes go over it.
TILE_BYTES = 6 << 20
MIN_TILE, MAX_TILE = 64, 4096
# So should what is made of a chunk of rows; smaller chunks pay more for calling.
CHUNK_BYTES, MIN_CHUNK = 16 << 20, 1024


@dataclass(frozen=True)
class Tile:
    start: int
    stop: int
    scores_BT: torch.Tensor
    """Scores relative to the positive; -inf where an entry is left out, so that softplus and sigma are 0."""
    scratch_BT: torch.Tensor
    items_TK: torch.Tensor


def tile_width(num_users: int, num_items: int, dtype: torch.dtype) -> int:
    width = TILE_BYTES // (max(num_users, 1) * dtype.itemsize)
    return max(1, min(num_items, MAX_TILE, max(MIN_TILE, width // 16 * 16)))


def shaped(buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The beginning of a flat buffer as a tile: the last one, and the last users, are fewer than it has room for."""
    return buffer[: rows * columns].view(rows, columns)


def entry_bounds(columns_E: torch.Tensor, num_items: int, width: int) -> list[int]:
    """Where each tile's entries begin among the sorted columns: tile i has those from bounds[i] to bounds[i + 1]."""
    starts = torch.arange(0, num_items + width, width, device=columns_E.device)
    return torch.searchsorted(columns_E, starts).tolist()


def relative_score_tiles(scores: ScorePass) -> Iterator[Tile]:
    """Walks over s_bj - positive_score_b, with the items' offsets where there are any, tile by tile.

    Both buffers of a tile are used again for the next one: in-place work on them is free.
    """
    rows_E, columns_E = scores.left_out()
    dtype = accumulator_dtype(scores.users_BK.dtype)
    users_BK, items_NK = scores.users_BK.to(dtype), scores.items_NK
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    width = tile_width(num_users, num_items, dtype)
    buffer, scratch = users_BK.new_empty(2, num_users * width).unbind(0)
    minus_positive_B1 = scores.positive_scores_B.to(dtype).neg()[:, None]
    bounds = entry_bounds(columns_E, num_items, width)
    # Where an entry lies in its tile, which is `width` columns wide, or less if it is the last one.
    first_E = columns_E - columns_E % width
    flat_E = rows_E * (num_items - first_E).clamp(max=width) + columns_E - first_E
    for index, start in enumerate(range(0, num_items, width)):
        stop = min(start + width, num_items)
        tile_BT, scratch_BT = (shaped(each, num_users, stop - start) for each in (buffer, scratch))
        items_TK = items_NK[start:stop].to(dtype)
        torch.addmm(minus_positive_B1, users_BK, items_TK.T, out=tile_BT)
        if scores.item_offset_N is not None:
            tile_BT += scores.item_offset_N[start:stop].to(dtype)
        first, last = bounds[index], bounds[index + 1]
        if first < last:
            tile_BT.view(-1).index_fill_(0, flat_E[first:last], float("-inf"))
        yield Tile(start, stop, tile_BT, scratch_BT, items_TK)


def row_chunks(num_rows: int, floats_per_row: int) -> Iterator[slice]:
    """Slices of neighbouring rows, for work on rows that makes so many numbers of each."""
    size = max(MIN_CHUNK, CHUNK_BYTES // (4 * max(floats_per_row, 1)))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


# Lengths outside of this come from squares that left, or nearly left, the range of float32.
_SAFE_LENGTHS = 1e-15, 1e15


def lengths_are_safe(lengths: torch.Tensor) -> bool:
    """False where a length may be wrong, or zero for a row that is not: then `scale_rows`, and measure again."""
    least, most = torch.aminmax(lengths)
    return bool(least > _SAFE_LENGTHS[0]) and bool(most < _SAFE_LENGTHS[1])


def scale_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows x scale, scale [n, 1]) with a power of two that brings each row's largest entry near 1: exact.

    The direction of a gradient is what counts, and squares of tiny ones would vanish.
    """
    exponent = torch.frexp(rows.abs().amax(1, keepdim=True)).exponent
    scale = torch.exp2(-exponent.clamp(min=-126).to(rows.dtype))
    return rows * scale, scale
