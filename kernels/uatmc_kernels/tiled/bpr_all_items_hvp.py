"""Tiled pass of `uatmc_kernels.bpr_all_items_hvp`."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import relative_score_tiles


def bpr_all_items_hvp(
    users_BK, items_NK, positive_scores_B, rows_E, columns_E, tangent_items_Nd, tangent_positive_B, columns: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    content_Bd = users_BK[:, columns].contiguous()
    minus_tangent_B1 = tangent_positive_B.to(dtype).neg()[:, None]
    hvp_Nd = users_BK.new_empty(tangent_items_Nd.shape)
    row_sums_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    for tile in relative_score_tiles(users_BK, items_NK, positive_scores_B, rows_E, columns_E):
        sigma_BT = tile.scores_BT.sigmoid_()
        tangent_Td = tangent_items_Nd[tile.start : tile.stop].to(dtype)
        second_BT = torch.addmm(minus_tangent_B1, content_Bd, tangent_Td.T, out=tile.scratch_BT)
        # second *= sigma (1 - sigma), in one pass over the tile
        torch.ops.aten.sigmoid_backward.grad_input(second_BT, sigma_BT, grad_input=second_BT)
        row_sums_B += second_BT.sum(1)
        torch.mm(second_BT.T, content_Bd, out=hvp_Nd[tile.start : tile.stop])
    return hvp_Nd, row_sums_B.to(dtype)
