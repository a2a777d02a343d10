"""Tiled pass of `uatmc_kernels.topk_all_items`: one running top-k, ordered by integer keys.

B  users    T  items of a tile    E  entries left out    F  scores that may enter a list    M  the most of a user
"""

import torch

from uatmc_kernels._dispatch import Seen, accumulator_dtype, left_out
from uatmc_kernels._ranking_keys import NOTHING, keys_of, scores_and_items
from uatmc_kernels.tiled._tiles import entry_bounds, shaped

_TILE_BYTES, _WIDEST = 16 << 20, 1 << 13
"""Of float64 scores, and in items. Selecting costs more by the tile than by the item, so tiles are wider than those of
other passes; and as much as the scores, so there is more than one: after the first the list leaves few to look at."""
_FEW = 4
"""So many times k of one user: with more, a tile is selected from as a whole."""


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, seen: Seen | None
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(users_BK.dtype)
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
        waiting.append(_best_keys(scores_BT, start, k, *seen_E) if tile_best is None else tile_best)
        if start == 0 or start + width >= num_items or sum(keys.shape[1] for keys in waiting) >= k:
            best_Bk = torch.cat([best_Bk, *waiting], dim=1).topk(k, dim=1, sorted=False).values
            waiting.clear()
    return scores_and_items(best_Bk.sort(dim=1, descending=True).values)


class _Tiles:
    """Memory of one tile, used for all: of so much, asked for anew each time, every page costs the system a fault."""

    def __init__(self, num_users: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = lambda size, dtype: torch.empty(size, dtype=dtype, device=device)  # noqa: E731
        self._products = empty(num_users * width, dtype)
        self._scores = self._products if dtype == torch.float32 else empty(num_users * width, torch.float32)
        self._above = empty(num_users * _whole_words(width), torch.bool)

    def scores(self, users_BK: torch.Tensor, items_TK: torch.Tensor) -> torch.Tensor:
        """[B, T] float32."""
        shape = len(users_BK), len(items_TK)
        products_BT, scores_BT = (shaped(buffer, *shape) for buffer in (self._products, self._scores))
        torch.mm(users_BK, items_TK.T, out=products_BT)
        return scores_BT if self._scores is self._products else scores_BT.copy_(products_BT)

    def not_below(self, scores_BT: torch.Tensor, last_B1: torch.Tensor) -> torch.Tensor:
        """Where scores are above, or no number, [B, T and up to seven more, which are False]."""
        num_users, width = scores_BT.shape
        above = shaped(self._above, num_users, _whole_words(width))
        torch.le(scores_BT, last_B1, out=above[:, :width])
        above[:, :width].logical_not_()
        above[:, width:] = False
        return above


def _whole_words(width: int) -> int:
    """So many Booleans and up to seven more: words of eight."""
    return 8 * -(-width // 8)


def _better_keys(
    scores_BT: torch.Tensor,
    start: int,
    best_Bk: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    tiles: _Tiles,
) -> torch.Tensor | None:
    """The keys [B, M] of what is better than the last of the k best so far; items below `start` win a tie. None where
    a list is not full, or too much is better."""
    num_users = len(scores_BT)
    last_B1, last_items_B1 = scores_and_items(best_Bk.amin(1, keepdim=True))
    if not num_users or (last_items_B1 < 0).any():
        return None
    above = tiles.not_below(scores_BT, last_B1)
    above[seen] = False
    # Eight comparisons are one word: nearly all are zero, and words are searched faster than Booleans.
    rows_W, words_W = above.view(torch.int64).nonzero(as_tuple=True)
    at_W, bytes_F = above.view(num_users, -1, 8)[rows_W, words_W].nonzero(as_tuple=True)
    rows_F, columns_F = rows_W[at_W], 8 * words_W[at_W] + bytes_F
    counts_B = torch.bincount(rows_F, minlength=num_users)
    most = int(counts_B.max())
    if most > _FEW * best_Bk.shape[1]:
        return None
    place_F = torch.arange(len(rows_F), device=rows_F.device) - (counts_B.cumsum(0) - counts_B)[rows_F]
    keys_BM = best_Bk.new_full((num_users, most), NOTHING)
    keys_BM[rows_F, place_F] = keys_of(scores_BT[rows_F, columns_F], start + columns_F)
    return keys_BM


def _best_keys(
    scores_BT: torch.Tensor, start: int, k: int, rows_E: torch.Tensor, columns_E: torch.Tensor
) -> torch.Tensor:
    """The k largest keys of each row, unordered; fewer in a narrow tile. Entries E are left out."""
    items_T = torch.arange(start, start + scores_BT.shape[1], device=scores_BT.device)
    if len(items_T) <= k:
        keys_BT = keys_of(scores_BT, items_T)
        keys_BT[rows_E, columns_E] = NOTHING
        return keys_BT
    # Selecting by score takes a third of the time that selecting by key does. Where no two scores meet at the end of
    # the list, both select the same.
    scores_BT[rows_E, columns_E] = float("-inf")
    top_Bk, columns_Bk = scores_BT.topk(k + 1, dim=1)
    best_Bk = keys_of(top_Bk[:, :k], items_T[columns_Bk[:, :k]])
    unclear_B = ~(top_Bk[:, k - 1] > top_Bk[:, k]) | top_Bk.isnan().any(1)
    if unclear_B.any():
        keys_UT = keys_of(scores_BT[unclear_B], items_T)
        mine_E = unclear_B[rows_E]
        keys_UT[(unclear_B.cumsum(0) - 1)[rows_E[mine_E]], columns_E[mine_E]] = NOTHING
        best_Bk[unclear_B] = keys_UT.topk(k, dim=1, sorted=False).values
    return best_Bk
