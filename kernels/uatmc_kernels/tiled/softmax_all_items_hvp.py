"""Tiled passes of `uatmc_kernels.softmax_all_items_hvp` and `softmax_mean_change`."""

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype
from uatmc_kernels.tiled._tiles import relative_score_tiles


def softmax_mean_change(scores: ScorePass, tangent_items_Nd: torch.Tensor, columns: slice) -> torch.Tensor:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    content_Bd = scores.users_BK[:, columns].to(dtype).contiguous()
    mean_B = content_Bd.new_zeros(len(content_Bd), dtype=torch.float64)
    for tile in relative_score_tiles(scores):
        tangent_Td = tangent_items_Nd[tile.start : tile.stop].to(dtype)
        change_BT = torch.mm(content_Bd, tangent_Td.T, out=tile.scratch_BT)
        mean_B += change_BT.mul_(tile.scores_BT.exp_()).sum(1)
    return mean_B.to(dtype)


def softmax_all_items_hvp(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, mean_change_B: torch.Tensor, columns: slice
) -> torch.Tensor:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    content_Bd = scores.users_BK[:, columns].to(dtype).contiguous()
    minus_mean_B1 = mean_change_B.to(dtype).neg()[:, None]
    hvp_Nd = content_Bd.new_empty(tangent_items_Nd.shape)
    for tile in relative_score_tiles(scores):
        tangent_Td = tangent_items_Nd[tile.start : tile.stop].to(dtype)
        second_BT = torch.addmm(minus_mean_B1, content_Bd, tangent_Td.T, out=tile.scratch_BT)
        second_BT.mul_(tile.scores_BT.exp_())
        torch.mm(second_BT.T, content_Bd, out=hvp_Nd[tile.start : tile.stop])
    return hvp_Nd
