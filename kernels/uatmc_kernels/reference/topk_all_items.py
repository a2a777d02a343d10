"""Reference of `uatmc_kernels.topk_all_items`: all scores, one stable sort."""

import torch


def topk_all_items(
    users_BK: torch.Tensor, items_NK: torch.Tensor, k: int, rows_E: torch.Tensor, columns_E: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scores_BN = (users_BK @ items_NK.T).float()
    scores_BN[rows_E, columns_E] = float("-inf")
    scores_Bk, ids_Bk = scores_BN.sort(dim=1, descending=True, stable=True)
    scores_Bk, ids_Bk = scores_Bk[:, :k], ids_Bk[:, :k]
    ids_Bk = ids_Bk.masked_fill(scores_Bk == float("-inf"), -1)
    missing = k - scores_Bk.shape[1]
    pad = torch.nn.functional.pad
    return pad(scores_Bk, (0, missing), value=float("-inf")), pad(ids_Bk, (0, missing), value=-1)
