"""Reference of `uatmc_kernels.softmax_all_items_hvp` and `softmax_mean_change`: the second derivative written out."""

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype


def _shares_and_change(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, columns: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    content_Bd = scores.users_BK[:, columns].to(dtype)
    scores_BN = scores.users_BK.to(dtype) @ scores.items_NK.to(dtype).T
    if scores.item_offset_N is not None:
        scores_BN = scores_BN + scores.item_offset_N.to(dtype)
    shares_BN = torch.exp(scores_BN - scores.positive_scores_B.to(dtype)[:, None])
    shares_BN[scores.left_out()] = 0
    return shares_BN, content_Bd @ tangent_items_Nd.to(dtype).T, content_Bd


def softmax_mean_change(scores: ScorePass, tangent_items_Nd: torch.Tensor, columns: slice) -> torch.Tensor:
    shares_BN, change_BN, _ = _shares_and_change(scores, tangent_items_Nd, columns)
    return (shares_BN * change_BN).sum(1)


def softmax_all_items_hvp(
    scores: ScorePass, tangent_items_Nd: torch.Tensor, mean_change_B: torch.Tensor, columns: slice
) -> torch.Tensor:
    shares_BN, change_BN, content_Bd = _shares_and_change(scores, tangent_items_Nd, columns)
    return (shares_BN * (change_BN - mean_change_B.to(change_BN.dtype)[:, None])).T @ content_Bd
