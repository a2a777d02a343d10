"""Streaming top-k over all items, ties broken by the lower item."""

import torch

from uatmc_kernels import reference, tiled
from uatmc_kernels._dispatch import Implementation, Seen, check_scores, excluded_entries, resolve


def topk_all_items(
    users_BK: torch.Tensor,
    items_NK: torch.Tensor,
    k: int,
    *,
    seen: Seen | None = None,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items of each user, best first, without `seen` (a CSR pair: offsets [B+1], columns).

    Scores are computed in the dtype of the inputs and compared as float32; equal ones are ordered by
    item, so with float64 inputs the ranking does not depend on how the catalog is cut into blocks.

    Returns (scores_Bk float32, ids_Bk int64); where a user has fewer than k items left, -inf and -1.
    Raises ValueError, naming the argument, for what does not fit.
    """
    num_users, num_items, _ = check_scores(users_BK, items_NK)
    if k < 1:
        raise ValueError(f"k: {k} is not at least 1")
    rows_E, columns_E = excluded_entries(None, seen, num_users, num_items, users_BK.device)
    run = reference.topk_all_items if resolve(implementation) == "reference" else tiled.topk_all_items
    with torch.no_grad():
        return run(users_BK, items_NK, k, rows_E, columns_E)
