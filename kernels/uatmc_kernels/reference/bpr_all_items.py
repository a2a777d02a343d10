"""Reference of `uatmc_kernels.bpr_all_items`: B x N scores, derivatives of any order by autograd."""

import torch
import torch.nn.functional as F

from uatmc_kernels._dispatch import accumulator_dtype


def bpr_all_items(
    users_BK: torch.Tensor,
    items_NK: torch.Tensor,
    positive_scores_B: torch.Tensor,
    rows_E: torch.Tensor,
    columns_E: torch.Tensor,
) -> torch.Tensor:
    dtype = accumulator_dtype(users_BK.dtype)
    scores_BN = users_BK.to(dtype) @ items_NK.to(dtype).T
    losses_BN = F.softplus(scores_BN - positive_scores_B.to(dtype)[:, None], threshold=50.0)
    kept_BN = torch.ones_like(losses_BN).index_put((rows_E, columns_E), losses_BN.new_zeros(()))
    return (losses_BN * kept_BN).sum(1)
