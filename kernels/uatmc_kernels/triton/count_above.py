"""Triton pass of `uatmc_kernels.count_above`: items own tiles, counts are sums of integers."""

import torch
import triton

from uatmc_kernels.triton._launches import as_rows, split, vector
from uatmc_kernels.triton._variants import prepare


def count_above(
    users_BK: torch.Tensor, items_NK: torch.Tensor, thresholds_B: torch.Tensor, boni_BP: torch.Tensor
) -> torch.Tensor:
    users, items = as_rows(users_BK), as_rows(items_NK)
    (num_users, width), num_items = users.shape, len(items)
    counts_PN = torch.zeros(boni_BP.shape[1], num_items, dtype=torch.int32, device=users.device)
    if num_users and num_items:
        prepared = prepare("count_above", {"K": width}, users)
        num_tiles = triton.cdiv(num_items, prepared.blocks["BO"])
        splits, per_split = split(num_users, prepared.blocks["BS"], num_tiles, users)
        for counts_N, bonus_B in zip(counts_PN, boni_BP.unbind(1), strict=True):
            prepared.kernel[num_tiles, splits](
                users,
                items,
                vector(thresholds_B),
                vector(bonus_B),
                counts_N,
                num_users,
                num_items,
                per_split,
                USER_STRIDE=users.stride(0),
                ITEM_STRIDE=items.stride(0),
                K=width,
                **prepared.constants,
            )
    return counts_PN.long()
