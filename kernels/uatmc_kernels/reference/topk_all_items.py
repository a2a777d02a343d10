"""Reference of `uatmc_kernels.topk_all_items`: all scores, one stable sort."""

import torch

from uatmc_kernels._dispatch import Seen, accumulator_dtype, left_out


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, seen: Seen | None
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(users_BK.dtype)
    scores_BN = (users_BK.to(dtype) @ items_NK.to(dtype).T).float()
    scores_BN[left_out(None, seen, len(users_BK), len(items_NK), users_BK.device)] = float("-inf")
    scores_Bk, ids_Bk = scores_BN.sort(dim=1, descending=True, stable=True)
    scores_Bk, ids_Bk = scores_Bk[:, :k], ids_Bk[:, :k]
    ids_Bk = ids_Bk.masked_fill(scores_Bk == float("-inf"), -1)
    missing = k - scores_Bk.shape[1]
    pad = torch.nn.functional.pad
    return pad(scores_Bk, (0, missing), value=float("-inf")), pad(ids_Bk, (0, missing), value=-1)
