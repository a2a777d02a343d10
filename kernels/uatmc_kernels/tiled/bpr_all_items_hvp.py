"""Tiled pass of `uatmc_kernels.bpr_all_items_hvp`."""

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype
from uatmc_kernels.tiled._tiles import relative_score_tiles


def bpr_all_items_hvp(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, tangent_positive_B: torch.Tensor, columns: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    content_Bd = scores.users_BK[:, columns].to(dtype).contiguous()
    minus_tangent_B1 = tangent_positive_B.to(dtype).neg()[:, None]
    hvp_Nd = content_Bd.new_empty(tangent_items_Nd.shape)
    row_sums_B = content_Bd.new_zeros(len(content_Bd), dtype=torch.float64)
    for tile in relative_score_tiles(scores):
        sigma_BT = tile.scores_BT.sigmoid_()
        tangent_Td = tangent_items_Nd[tile.start : tile.stop].to(dtype)
        second_BT = torch.addmm(minus_tangent_B1, content_Bd, tangent_Td.T, out=tile.scratch_BT)
        # second *= sigma (1 - sigma), in one pass over the tile
        torch.ops.aten.sigmoid_backward.grad_input(second_BT, sigma_BT, grad_input=second_BT)
        row_sums_B += second_BT.sum(1)
        torch.mm(second_BT.T, content_Bd, out=hvp_Nd[tile.start : tile.stop])
    return hvp_Nd, row_sums_B.to(dtype)
