"""Streaming top-k over all items, ties broken by the lower item."""

import torch
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import Implementation, Seen, backend, check_scores, resolve, seen_pair
from uatmc_kernels._op import op

_TRITON_MAX_K = 128
"""Longer rankings do not fit into registers."""


@torch.no_grad()
def topk_all_items(
    users_BK: Tensor,
    items_NK: Tensor,
    k: int,
    *,
    seen: Seen | None = None,
    rounded: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best items of each user, best first, without `seen` (a CSR pair: offsets [B+1], columns).

    Scores are computed in float32 (float64 for float64 inputs) and compared as float32; equal ones are ordered
    by item, so with float64 inputs the ranking does not depend on how the catalog is cut into blocks.
    rounded: those of bfloat16 inputs may be rounded to bfloat16 before, as products of matrices are; a CPU that
    multiplies bfloat16 takes half the time for it, any other one far more.
    Triton serves k up to 128, and does not round.

    Returns (scores_Bk float32, ids_Bk int64); where a user has fewer than k items left, -inf and -1.
    Raises ValueError, naming the argument, for what does not fit.
    """
    check_scores(users_BK, items_NK, seen)
    if k < 1:
        raise ValueError(f"k: {k} is not at least 1")
    unfit = f"k = {k} is more than {_TRITON_MAX_K}" if k > _TRITON_MAX_K else ""
    name = resolve(implementation, users_BK, unfit=unfit)
    if name == "reference":
        return reference.topk_all_items(users_BK, items_NK, k, seen)
    return _topk(users_BK, items_NK, k, *(seen or (None, None)), rounded, name)


@op("topk_all_items")
def _topk(
    users: Tensor,
    items: Tensor,
    k: int,
    offsets: Tensor | None,
    columns: Tensor | None,
    rounded: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    options = {"rounded": rounded} if implementation == "tiled" else {}
    return backend(implementation).topk_all_items(users, items, k, seen_pair(offsets, columns), **options)


@_topk.register_fake
def _(users, items, k, offsets, columns, rounded, implementation):  # type: ignore[no-untyped-def]
    shape = (len(users), k)
    return users.new_empty(shape, dtype=torch.float32), users.new_empty(shape, dtype=torch.int64)
