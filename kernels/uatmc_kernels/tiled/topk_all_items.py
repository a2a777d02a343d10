"""Tiled pass of `uatmc_kernels.topk_all_items`: one running top-k, ordered by integer keys.

B  users    T  items of a tile    E  entries left out    F  scores that may enter a list    M  the most of a user
"""

import torch

from uatmc_kernels._dispatch import Seen, accumulator_dtype, left_out
from uatmc_kernels._ranking_keys import NOTHING, keys_of, scores_and_items
from uatmc_kernels.tiled._tiles import entry_bounds

_TILE_BYTES, _WIDEST = 64 << 20, 1 << 13
"""Of float64 scores, and in items. Selecting costs more by the tile than by the item, so tiles are wider than those of
other passes. After the first the list leaves few to look at."""
_FEW = 4
"""So many times k of one user: with more, a tile is selected from as a whole."""
_GROUPS, _SMALLEST_GROUP = 4, 4
"""So many times k, of at least so many items: the k-th largest of their maxima leaves few scores of a first tile."""
_ALIGNED = 64
"""Columns: products whose rows begin anywhere take 1.7 times as long."""


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, seen: Seen | None, rounded: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = users_BK.dtype if rounded else accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    rows_E, columns_E = left_out(None, seen, num_users, num_items, users_BK.device)
    best_Bk = torch.full((num_users, k), NOTHING, dtype=torch.int64, device=users_BK.device)
    width = max(1, min(num_items, max(min(_TILE_BYTES // (8 * max(num_users, 1)), _WIDEST), k)))
    bounds = entry_bounds(columns_E, num_items, width)
    tiles = _Tiles(num_users, width, dtype, users_BK.device)
    waiting: list[torch.Tensor] = []
    for index, start in enumerate(range(0, num_items, width)):
        scores_BT = tiles.scores(users_BK, items_NK[start : start + width].to(dtype))
        seen_here = slice(bounds[index], bounds[index + 1])
        seen_E = rows_E[seen_here], columns_E[seen_here] - start
        tile_best = _better_keys(scores_BT, start, best_Bk, seen_E, tiles) if start else None
        waiting.append(_best_keys(scores_BT, start, k, seen_E, tiles) if tile_best is None else tile_best)
        if start == 0 or start + width >= num_items or sum(keys.shape[1] for keys in waiting) >= k:
            best_Bk = torch.cat([best_Bk, *waiting], dim=1).topk(k, dim=1, sorted=False).values
            waiting.clear()
    return scores_and_items(best_Bk.sort(dim=1, descending=True).values)


class _Tiles:
    """Memory of one tile, used for all: of so much, asked for anew each time, every page costs the system a fault."""

    def __init__(self, num_users: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = lambda dtype: torch.empty(num_users, _up_to(_ALIGNED, width), dtype=dtype, device=device)  # noqa: E731
        self._products = empty(dtype)
        self._scores = self._products if dtype == torch.float32 else empty(torch.float32)
        self._chosen = empty(torch.bool)

    def scores(self, users_BK: torch.Tensor, items_TK: torch.Tensor) -> torch.Tensor:
        """[B, T] float32."""
        products_BT, scores_BT = (tile[:, : len(items_TK)] for tile in (self._products, self._scores))
        torch.mm(users_BK, items_TK.T, out=products_BT)
        return scores_BT if self._scores is self._products else scores_BT.copy_(products_BT)

    def beyond(self, scores_BT: torch.Tensor, bar_B1: torch.Tensor, *, or_equal: bool) -> torch.Tensor:
        """Where scores are above (or equal), or no number, [B, T and up to seven more, which are False]."""
        width = scores_BT.shape[1]
        chosen = self._chosen[:, : _up_to(8, width)]
        (torch.lt if or_equal else torch.le)(scores_BT, bar_B1, out=chosen[:, :width])
        chosen[:, :width].logical_not_()
        chosen[:, width:] = False
        return chosen


def _up_to(multiple: int, width: int) -> int:
    return multiple * -(-width // multiple)


def _better_keys(
    scores_BT: torch.Tensor,
    start: int,
    best_Bk: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    tiles: _Tiles,
) -> torch.Tensor | None:
    """The keys [B, M] of what is better than the last of the k best so far; items below `start` win a tie. None where
    a list is not full, or too much is better."""
    last_B1, last_items_B1 = scores_and_items(best_Bk.amin(1, keepdim=True))
    if not len(scores_BT) or (last_items_B1 < 0).any():
        return None
    better = tiles.beyond(scores_BT, last_B1, or_equal=False)
    better[seen] = False
    return _keys_where(better, scores_BT, start, _FEW * best_Bk.shape[1])


def _keys_where(chosen: torch.Tensor, scores_BT: torch.Tensor, start: int, most: int) -> torch.Tensor | None:
    """The keys [B, M] of the chosen scores; None where there are more than `most` of a user."""
    num_users = len(scores_BT)
    # Eight comparisons are one word: nearly all are zero, and words are searched faster than Booleans.
    rows_W, words_W = chosen.view(torch.int64).nonzero(as_tuple=True)
    at_W, bytes_F = chosen.unflatten(1, (-1, 8))[rows_W, words_W].nonzero(as_tuple=True)
    rows_F, columns_F = rows_W[at_W], 8 * words_W[at_W] + bytes_F
    counts_B = torch.bincount(rows_F, minlength=num_users)
    largest = int(counts_B.max())
    if largest > most:
        return None
    place_F = torch.arange(len(rows_F), device=rows_F.device) - (counts_B.cumsum(0) - counts_B)[rows_F]
    keys_BM = torch.full((num_users, largest), NOTHING, dtype=torch.int64, device=scores_BT.device)
    keys_BM[rows_F, place_F] = keys_of(scores_BT[rows_F, columns_F], start + columns_F)
    return keys_BM


def _best_keys(
    scores_BT: torch.Tensor, start: int, k: int, seen: tuple[torch.Tensor, torch.Tensor], tiles: _Tiles
) -> torch.Tensor:
    """Keys of each row with its k largest among them, unordered; fewer in a narrow tile. `seen` is left out."""
    items_T = torch.arange(start, start + scores_BT.shape[1], device=scores_BT.device)
    if len(items_T) <= k:
        keys_BT = keys_of(scores_BT, items_T)
        keys_BT[seen] = NOTHING
        return keys_BT
    scores_BT[seen] = float("-inf")
    few_BM = _keys_by_groups(scores_BT, start, k, tiles)
    if few_BM is not None:
        return few_BM
    # Selecting by score takes a third of the time that selecting by key does. Where no two scores meet at the end of
    # the list, both select the same.
    top_Bk, columns_Bk = scores_BT.topk(k + 1, dim=1)
    best_Bk = keys_of(top_Bk[:, :k], items_T[columns_Bk[:, :k]])
    unclear_B = ~(top_Bk[:, k - 1] > top_Bk[:, k]) | top_Bk.isnan().any(1)
    if unclear_B.any():
        rows_E, columns_E = seen
        keys_UT = keys_of(scores_BT[unclear_B], items_T)
        mine_E = unclear_B[rows_E]
        keys_UT[(unclear_B.cumsum(0) - 1)[rows_E[mine_E]], columns_E[mine_E]] = NOTHING
        best_Bk[unclear_B] = keys_UT.topk(k, dim=1, sorted=False).values
    return best_Bk


def _keys_by_groups(scores_BT: torch.Tensor, start: int, k: int, tiles: _Tiles) -> torch.Tensor | None:
    """As `_best_keys`, without what is below the k-th largest maximum of groups of columns: k scores are not. A third
    of the time of selecting among all. None where groups are small, or leave too much."""
    size = scores_BT.shape[1] // (_GROUPS * k)
    if size < _SMALLEST_GROUP or not len(scores_BT):
        return None
    groups = scores_BT.shape[1] // size
    maxima = scores_BT[:, : size * groups].unflatten(1, (size, groups)).amax(1)
    bar_B1 = maxima.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    if not bar_B1.isfinite().all():  # too few are left in, or some have no number
        return None
    return _keys_where(tiles.beyond(scores_BT, bar_B1, or_equal=True), scores_BT, start, _FEW * k)
