"""Triton pass of `uatmc_kernels.topk_all_items`: rankings in registers, one for each split of the items."""

import torch
import triton

from uatmc_kernels._dispatch import Seen
from uatmc_kernels._ranking_keys import scores_and_items
from uatmc_kernels.triton._launches import as_rows, entries, launch_for, split
from uatmc_kernels.triton._variants import PRECISIONS, VARIANTS

MAX_K = 128
"""Longer rankings do not fit into registers."""


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, seen: Seen | None
) -> tuple[torch.Tensor, torch.Tensor]:
    users, items = as_rows(users_BK), as_rows(items_NK)
    (num_users, width), num_items = users.shape, len(items)
    if not (num_users and num_items):
        nothing = torch.iinfo(torch.int64).min
        return scores_and_items(torch.full((num_users, k), nothing, dtype=torch.int64, device=users.device))
    name = "topk_64" if k <= 64 else "topk_128"
    variant, launch = VARIANTS[name], launch_for(name, width, users)
    blocks = variant.block_arguments(launch, {"K": width})
    num_tiles = triton.cdiv(num_users, blocks["BO"])
    splits, per_split = split(num_items, blocks["BS"], num_tiles, users)
    best = torch.empty(splits, num_users, k, dtype=torch.int64, device=users.device)
    variant.kernel[num_tiles, splits](
        users,
        items,
        best_out=best,
        num_users=num_users,
        num_items=num_items,
        per_split=per_split,
        k=k,
        **entries(seen, True, blocks["BO"], blocks["BS"], num_items),
        USER_STRIDE=users.stride(0),
        ITEM_STRIDE=items.stride(0),
        K=width,
        **variant.flags,
        **blocks,
        PRECISION=PRECISIONS[users.dtype],
        **launch.options,
    )
    return scores_and_items(best.permute(1, 0, 2).reshape(num_users, splits * k).topk(k, dim=1).values)
