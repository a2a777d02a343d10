"""Reference of `uatmc_kernels.logsumexp_all_items`: B x N scores, derivatives of any order by autograd."""

import torch
import torch.nn.functional as F

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype


def logsumexp_all_items(scores: ScorePass) -> torch.Tensor:
    dtype = accumulator_dtype(scores.users_BK.dtype)
    scores_BN = scores.users_BK.to(dtype) @ scores.items_NK.to(dtype).T
    if scores.item_offset_N is not None:
        scores_BN = scores_BN + scores.item_offset_N.to(dtype)
    scores_BN = scores_BN.index_put(scores.left_out(), scores_BN.new_tensor(-torch.inf))
    has_items_B = (scores_BN > -torch.inf).any(1)
    # The gradient of a log-sum-exp over nothing is NaN; here it is zero. The last column stands in for a missing first.
    finite_BN = torch.where(has_items_B[:, None], scores_BN, 0.0)
    lse_B = torch.logsumexp(F.pad(finite_BN, (0, 1), value=-torch.inf), 1)
    return torch.where(has_items_B, lse_B, -torch.inf)
