"""Tiled pass of `uatmc_kernels.topk_all_items`: one running top-k of integer keys."""

import torch

from uatmc_kernels.tiled._tiles import tile_width

_LOW_32 = 0xFFFFFFFF
_NOTHING = torch.iinfo(torch.int64).min


def _keys(scores_BT: torch.Tensor, first_item: int) -> torch.Tensor:
    """int64 keys that order like (score, lower item first): the score's bits above, the item's below."""
    bits = (scores_BT.float() + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    items_T = torch.arange(first_item, first_item + scores_BT.shape[1], device=scores_BT.device)
    return (ordered.to(torch.int64) << 32) | (_LOW_32 - items_T)


def topk_all_items(users_BK, items_NK, k: int, rows_E, columns_E) -> tuple[torch.Tensor, torch.Tensor]:
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    width = max(tile_width(num_users, num_items, torch.float64), min(k, num_items), 1)
    best_Bk = torch.full((num_users, k), _NOTHING, dtype=torch.int64, device=users_BK.device)
    starts = torch.arange(0, num_items + width, width, device=columns_E.device)
    bounds = torch.searchsorted(columns_E, starts).tolist()
    for index, start in enumerate(range(0, num_items, width)):
        keys_BT = _keys(users_BK @ items_NK[start : start + width].T, start)
        first, last = bounds[index], bounds[index + 1]
        keys_BT[rows_E[first:last], columns_E[first:last] - start] = _NOTHING
        tile_best = keys_BT.topk(min(k, keys_BT.shape[1]), dim=1, sorted=False).values
        best_Bk = torch.cat([best_Bk, tile_best], dim=1).topk(k, dim=1).values
    ordered = (best_Bk >> 32).to(torch.int32)
    scores_Bk = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    nothing = best_Bk == _NOTHING
    return scores_Bk.masked_fill(nothing, float("-inf")), (_LOW_32 - (best_Bk & _LOW_32)).masked_fill(nothing, -1)
