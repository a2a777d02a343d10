"""Reference of `uatmc_kernels.count_above`: all scores, one comparison."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype


def count_above(
    users_BK: torch.Tensor, items_NK: torch.Tensor, thresholds_B: torch.Tensor, bonus_B: torch.Tensor
) -> torch.Tensor:
    dtype = accumulator_dtype(users_BK.dtype)
    scores_BN = users_BK.to(dtype) @ items_NK.to(dtype).T
    return (scores_BN + bonus_B.to(dtype)[:, None] > thresholds_B.to(dtype)[:, None]).sum(0)
