"""Reference of `uatmc_kernels.bpr_all_items`: B x N scores, derivatives of any order by autograd."""

import torch
import torch.nn.functional as F

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype


def bpr_all_items(scores: ScorePass) -> torch.Tensor:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    scores_BN = scores.users_BK.to(dtype) @ scores.items_NK.to(dtype).T
    losses_BN = F.softplus(scores_BN - scores.positive_scores_B.to(dtype)[:, None], threshold=50.0)
    kept_BN = torch.ones_like(losses_BN).index_put(scores.left_out(), losses_BN.new_zeros(()))
    return (losses_BN * kept_BN).sum(1)
