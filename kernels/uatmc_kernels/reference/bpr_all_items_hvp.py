"""Reference of `uatmc_kernels.bpr_all_items_hvp`: the second derivative written out."""

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype


def bpr_all_items_hvp(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, tangent_positive_B: torch.Tensor, columns: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    content_Bd = scores.users_BK[:, columns].to(dtype)
    scores_BN = scores.users_BK.to(dtype) @ scores.items_NK.to(dtype).T
    sigma_BN = torch.sigmoid(scores_BN - scores.positive_scores_B.to(dtype)[:, None])
    change_BN = content_Bd @ tangent_items_Nd.to(dtype).T - tangent_positive_B.to(dtype)[:, None]
    second_BN = sigma_BN * (1 - sigma_BN) * change_BN
    second_BN[scores.left_out()] = 0
    return second_BN.T @ content_Bd, second_BN.sum(1)
