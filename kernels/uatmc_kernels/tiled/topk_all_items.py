"""Tiled pass of `uatmc_kernels.topk_all_items`: one running top-k of integer keys."""

import torch

from uatmc_kernels._dispatch import Seen, accumulator_dtype, left_out
from uatmc_kernels._ranking_keys import NOTHING, keys_of, scores_and_items
from uatmc_kernels.tiled._tiles import entry_bounds, tile_width


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, seen: Seen | None
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    rows_E, columns_E = left_out(None, seen, num_users, num_items, users_BK.device)
    width = max(tile_width(num_users, num_items, torch.float64), min(k, num_items), 1)
    best_Bk = torch.full((num_users, k), NOTHING, dtype=torch.int64, device=users_BK.device)
    bounds = entry_bounds(columns_E, num_items, width)
    for index, start in enumerate(range(0, num_items, width)):
        keys_BT = keys_of(users_BK @ items_NK[start : start + width].to(dtype).T, start)
        first, last = bounds[index], bounds[index + 1]
        keys_BT[rows_E[first:last], columns_E[first:last] - start] = NOTHING
        tile_best = keys_BT.topk(min(k, keys_BT.shape[1]), dim=1, sorted=False).values
        best_Bk = torch.cat([best_Bk, tile_best], dim=1).topk(k, dim=1).values
    return scores_and_items(best_Bk)
