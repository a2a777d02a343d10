"""Triton pass of `uatmc_kernels.bpr_all_items_hvp`: one deterministic sweep in which items own tiles."""

import torch
import triton

from uatmc_kernels._dispatch import ScorePass
from uatmc_kernels.triton._launches import as_rows, entries, programs, vector
from uatmc_kernels.triton._variants import prepare


def bpr_all_items_hvp(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, tangent_positive_B: torch.Tensor, columns: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    users, items = as_rows(scores.users_BK), as_rows(scores.items_NK)
    content = as_rows(scores.users_BK[:, columns])
    tangent = as_rows(tangent_items_Nd.to(users.dtype))
    (num_users, width), (num_items, content_width) = users.shape, tangent.shape
    hvp_Nd = users.new_zeros(num_items, content_width, dtype=torch.float32)
    if not (num_users and num_items and content_width):
        return hvp_Nd, users.new_zeros(num_users, dtype=torch.float32)
    prepared = prepare("hvp", {"K": width, "D": content_width}, users)
    num_tiles = triton.cdiv(num_items, prepared.blocks["BO"])
    num_programs, tiles_per_program = programs(num_tiles, users)
    row_sums = users.new_zeros(num_programs, num_users, dtype=torch.float32)
    prepared.kernel[num_programs, 1, triton.cdiv(content_width, prepared.blocks["DO"])](
        users,
        items,
        content,
        tangent,
        vector(scores.positive_scores_B),
        vector(scores.skip_B, torch.int32),
        vector(tangent_positive_B),
        hvp_out=hvp_Nd,
        row_sums_out=row_sums,
        num_users=num_users,
        num_items=num_items,
        num_tiles=num_tiles,
        tiles_per_program=tiles_per_program,
        **entries(scores.seen, False, prepared.blocks["BO"], prepared.blocks["BS"], num_items, num_users),
        USER_STRIDE=users.stride(0),
        ITEM_STRIDE=items.stride(0),
        CONTENT_STRIDE=content.stride(0),
        TANGENT_STRIDE=tangent.stride(0),
        K=width,
        D=content_width,
        **prepared.constants,
    )
    return hvp_Nd, row_sums.sum(0)
