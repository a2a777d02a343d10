"""Triton pass of `uatmc_kernels.topk_all_items`: rankings in registers, one for each split of the items."""

import torch
import triton

from uatmc_kernels._dispatch import Seen
from uatmc_kernels._ranking_keys import NOTHING, scores_and_items
from uatmc_kernels.triton._launches import as_rows, entries, split
from uatmc_kernels.triton._variants import prepare


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, seen: Seen | None
) -> tuple[torch.Tensor, torch.Tensor]:
    users, items = as_rows(users_BK), as_rows(items_NK)
    (num_users, width), num_items = users.shape, len(items)
    if not (num_users and num_items):
        return scores_and_items(torch.full((num_users, k), NOTHING, dtype=torch.int64, device=users.device))
    name = "topk_64" if k <= 64 else "topk_128"
    prepared = prepare(name, {"K": width}, users)
    num_tiles = triton.cdiv(num_users, prepared.blocks["BO"])
    splits, per_split = split(num_items, prepared.blocks["BS"], num_tiles, users)
    best = torch.empty(splits, num_users, k, dtype=torch.int64, device=users.device)
    prepared.kernel[num_tiles, splits](
        users,
        items,
        best_out=best,
        num_users=num_users,
        num_items=num_items,
        per_split=per_split,
        k=k,
        **entries(seen, True, prepared.blocks["BO"], prepared.blocks["BS"], num_users, num_items),
        USER_STRIDE=users.stride(0),
        ITEM_STRIDE=items.stride(0),
        K=width,
        **prepared.constants,
    )
    return scores_and_items(best.permute(1, 0, 2).reshape(num_users, splits * k).topk(k, dim=1).values)
