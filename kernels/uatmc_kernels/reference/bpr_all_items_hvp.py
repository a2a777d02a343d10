"""Reference of `uatmc_kernels.bpr_all_items_hvp`: the second derivative written out."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype


def bpr_all_items_hvp(
    users_BK: torch.Tensor,
    items_NK: torch.Tensor,
    positive_scores_B: torch.Tensor,
    rows_E: torch.Tensor,
    columns_E: torch.Tensor,
    tangent_items_Nd: torch.Tensor,
    tangent_positive_B: torch.Tensor,
    columns: slice,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(users_BK.dtype)
    content_Bd = users_BK[:, columns].to(dtype)
    scores_BN = users_BK.to(dtype) @ items_NK.to(dtype).T
    sigma_BN = torch.sigmoid(scores_BN - positive_scores_B.to(dtype)[:, None])
    change_BN = content_Bd @ tangent_items_Nd.to(dtype).T - tangent_positive_B.to(dtype)[:, None]
    second_BN = sigma_BN * (1 - sigma_BN) * change_BN
    second_BN[rows_E, columns_E] = 0
    return second_BN.T @ content_Bd, second_BN.sum(1)
