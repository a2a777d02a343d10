"""Tiled pass of `uatmc_kernels.count_above`."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import shaped, tile_width

_USERS_AT_ONCE = 255
"""A byte counts so many: on a CPU bytes are added twenty times as fast as Booleans."""
_DEVICE_TILE_BYTES = 1 << 29
"""On a GPU what counts is how few launches there are."""


def count_above(
    users_BK: torch.Tensor, items_NK: torch.Tensor, thresholds_B: torch.Tensor, boni_BP: torch.Tensor
) -> torch.Tensor:
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    limits_PB1 = (thresholds_B.to(dtype)[:, None] - boni_BP.to(dtype)).T.contiguous()[:, :, None]
    num_users, num_items = users_BK.shape[0], items_NK.shape[0]
    if users_BK.device.type == "cpu":
        at_once, count_dtype = _USERS_AT_ONCE, torch.uint8
        width = tile_width(min(num_users, at_once), num_items, dtype)
    else:
        at_once, count_dtype = max(1, num_users), torch.int32
        width = max(1, min(num_items, _DEVICE_TILE_BYTES // (at_once * dtype.itemsize)))
    scores, above = (users_BK.new_empty(at_once * width, dtype=kind) for kind in (dtype, torch.bool))
    counts_PN = torch.zeros(len(limits_PB1), num_items, dtype=torch.int64, device=users_BK.device)
    for start in range(0, num_items, width):
        counts_PT = counts_PN[:, start : start + width]
        items_KT = items_NK[start : start + width].to(dtype).T
        for first in range(0, num_users, at_once):
            chosen = slice(first, min(first + at_once, num_users))
            shape = chosen.stop - first, items_KT.shape[1]
            scores_CT, above_CT = (shaped(buffer, *shape) for buffer in (scores, above))
            torch.mm(users_BK[chosen], items_KT, out=scores_CT)
            for counts_T, limits_B1 in zip(counts_PT, limits_PB1, strict=True):
                torch.gt(scores_CT, limits_B1[chosen], out=above_CT)
                counts_T += above_CT.view(torch.uint8).sum(0, dtype=count_dtype)
    return counts_PN
