"""Reference of `uatmc_kernels.count_above`: all scores, one comparison for each bonus."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype


def count_above(
    users_BK: torch.Tensor, items_NK: torch.Tensor, thresholds_B: torch.Tensor, boni_BP: torch.Tensor
) -> torch.Tensor:
    dtype = accumulator_dtype(users_BK.dtype)
    scores_BN = users_BK.to(dtype) @ items_NK.to(dtype).T
    raised_PBN = scores_BN + boni_BP.to(dtype).T[:, :, None]
    return (raised_PBN > thresholds_B.to(dtype)[:, None]).sum(1)
