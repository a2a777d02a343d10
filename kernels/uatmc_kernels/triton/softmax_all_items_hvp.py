"""Triton passes of `uatmc_kernels.softmax_all_items_hvp` and `softmax_mean_change`."""

import torch

from uatmc_kernels._dispatch import ScorePass
from uatmc_kernels.triton.logsumexp_all_items import sweep


def softmax_mean_change(scores: ScorePass, tangent_items_Nd: torch.Tensor, columns: slice) -> torch.Tensor:
    content_Bd = scores.users_BK[:, columns]
    return sweep("softmax_change", scores, change=(content_Bd, tangent_items_Nd.to(content_Bd.dtype)))[0]


def softmax_all_items_hvp(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, mean_change_B: torch.Tensor, columns: slice
) -> torch.Tensor:
    content_Bd = scores.users_BK[:, columns]
    change = content_Bd, tangent_items_Nd.to(content_Bd.dtype)
    return sweep("softmax_hvp", scores, change=change, mean_B=mean_change_B)[1]
