"""The walk over item tiles that every tiled score pass shares."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from uatmc_kernels._dispatch import accumulator_dtype

# One B x T tile should stay in the cache while several elementwise passes go over it.
TILE_BYTES = 6 << 20
MIN_TILE, MAX_TILE = 64, 4096
ROWS_PER_CHUNK = 16384


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


def relative_score_tiles(
    users_BK: torch.Tensor,
    items_NK: torch.Tensor,
    positive_scores_B: torch.Tensor,
    rows_E: torch.Tensor,
    columns_E: torch.Tensor,
) -> Iterator[Tile]:
    """Walks over s_bj - positive_score_b tile by tile. `users_BK` is already in the accumulator's dtype.

    Both buffers of a tile are used again for the next one: in-place work on them is free.
    """
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    dtype = accumulator_dtype(users_BK.dtype)
    width = tile_width(num_users, num_items, dtype)
    buffer, scratch = users_BK.new_empty(2, num_users * width).unbind(0)
    minus_positive_B1 = positive_scores_B.to(dtype).neg()[:, None]
    starts = torch.arange(0, num_items + width, width, device=columns_E.device)
    bounds = torch.searchsorted(columns_E, starts).tolist()
    # Where an entry lies in its tile, which is `width` columns wide, or less if it is the last one.
    first_E = columns_E - columns_E % width
    flat_E = rows_E * (num_items - first_E).clamp(max=width) + columns_E - first_E
    for index, start in enumerate(range(0, num_items, width)):
        stop = min(start + width, num_items)
        shape = (num_users, stop - start)
        tile_BT = buffer[: shape[0] * shape[1]].view(shape)
        items_TK = items_NK[start:stop].to(dtype)
        torch.addmm(minus_positive_B1, users_BK, items_TK.T, out=tile_BT)
        first, last = bounds[index], bounds[index + 1]
        if first < last:
            tile_BT.view(-1).index_fill_(0, flat_E[first:last], float("-inf"))
        yield Tile(start, stop, tile_BT, scratch[: shape[0] * shape[1]].view(shape), items_TK)
