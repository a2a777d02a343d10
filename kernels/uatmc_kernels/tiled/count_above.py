"""Tiled pass of `uatmc_kernels.count_above`."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import tile_width


def count_above(
    users_BK: torch.Tensor, items_NK: torch.Tensor, thresholds_B: torch.Tensor, bonus_B: torch.Tensor
) -> torch.Tensor:
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    bonus_B1, thresholds_B1 = bonus_B.to(dtype)[:, None], thresholds_B.to(dtype)[:, None]
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    width = tile_width(num_users, num_items, dtype)
    buffer = users_BK.new_empty(num_users * width)
    counts_N = torch.zeros(num_items, dtype=torch.int64, device=users_BK.device)
    for start in range(0, num_items, width):
        items_TK = items_NK[start : start + width].to(dtype)
        scores_BT = buffer[: num_users * len(items_TK)].view(num_users, len(items_TK))
        torch.mm(users_BK, items_TK.T, out=scores_BT).add_(bonus_B1)
        counts_N[start : start + width] = (scores_BT > thresholds_B1).sum(0)
    return counts_N
