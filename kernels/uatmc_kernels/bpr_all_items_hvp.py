"""Hessian-vector product of the all-items BPR loss in the content columns of the items."""

import torch
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import (
    Implementation,
    ScorePass,
    Seen,
    accumulator_dtype,
    backend,
    check_float,
    check_score_pass,
    content_columns,
    resolve,
)
from uatmc_kernels._op import op


@torch.no_grad()
def bpr_all_items_hvp(
    users_BK: Tensor,
    items_NK: Tensor,
    positive_scores_B: Tensor,
    skip_B: Tensor,
    tangent_items_Nd: Tensor,
    tangent_positive_B: Tensor,
    columns: slice,
    *,
    seen: Seen | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The HVP pass of docs/algorithm.md, section 4.1, for the unweighted sum over users of `bpr_all_items`.

    columns              slice of the K columns that hold the content half (h_b of a user); width d
    tangent_items_Nd     direction omega, one row an item of this block
    tangent_positive_B   h_b . omega of each user's positive, which may live in another block

    Returns (hvp_Nd, r_B): hvp_j = sum_b dA_bj h_b and r_b = sum_j dA_bj with
    dA_bj = sigma(x) sigma(-x) (h_b . omega_j - tangent_positive_b). The positive's own share,
    -r_b h_b at item i_b, is the caller's to scatter, since r_b has to be summed over blocks first.
    Raises ValueError, naming the argument, for shapes, dtypes or devices that do not fit.
    """
    scores = ScorePass(users_BK, items_NK, positive_scores_B, skip_B, seen)
    check_score_pass(scores)
    content = content_columns(columns, users_BK.shape[1])
    check_float("tangent_items_Nd", tangent_items_Nd, (len(items_NK), content.stop - content.start), users_BK)
    check_float("tangent_positive_B", tangent_positive_B, (len(users_BK),), users_BK)
    name = resolve(implementation, users_BK)
    if name == "reference":
        return reference.bpr_all_items_hvp(scores, tangent_items_Nd, tangent_positive_B, content)
    return _hvp(*scores.flat(), tangent_items_Nd, tangent_positive_B, content.start, content.stop, name)


@op("bpr_hvp")
def _hvp(
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    tangent_items: Tensor,
    tangent_positive: Tensor,
    start: int,
    stop: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    scores = ScorePass.of(users, items, positive, skip, offsets, columns)
    return backend(implementation).bpr_all_items_hvp(scores, tangent_items, tangent_positive, slice(start, stop))


@_hvp.register_fake
def _(users, items, positive, skip, offsets, columns, tangent_items, *rest):  # type: ignore[no-untyped-def]
    dtype = accumulator_dtype(users.dtype)
    return users.new_empty(tangent_items.shape, dtype=dtype), users.new_empty(len(users), dtype=dtype)
