"""Hessian-vector product of the all-items softmax loss in the content columns of the items, in two passes.

With P_bj = exp(s_bj - total_b) and the change t_bj = h_b . omega_j of a score along the direction omega,
dP_bj = P_bj (t_bj - sum_k P_bk t_bk): the inner sum, over all blocks and the positive, has to come first.
"""

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
    check_item_offset,
    check_score_pass,
    content_columns,
    resolve,
)
from uatmc_kernels._op import op


@torch.no_grad()
def softmax_mean_change(
    users_BK: Tensor,
    items_NK: Tensor,
    total_B: Tensor,
    skip_B: Tensor,
    tangent_items_Nd: Tensor,
    columns: slice,
    *,
    seen: Seen | None = None,
    item_offset_N: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """This block's share of sum_j P_bj t_bj, [B] (docs/algorithm.md, section 4.1).

    total_B    log of the softmax's denominator, over all blocks and with offsets

    Other arguments as in `softmax_all_items_hvp`.
    """
    scores = ScorePass(users_BK, items_NK, total_B, skip_B, seen, item_offset_N)
    content, name = _checked(scores, tangent_items_Nd, columns, implementation)
    if name == "reference":
        return reference.softmax_mean_change(scores, tangent_items_Nd, content)
    return _mean_change(*scores.flat(), item_offset_N, tangent_items_Nd, content.start, content.stop, name)


@torch.no_grad()
def softmax_all_items_hvp(
    users_BK: Tensor,
    items_NK: Tensor,
    total_B: Tensor,
    skip_B: Tensor,
    tangent_items_Nd: Tensor,
    mean_change_B: Tensor,
    columns: slice,
    *,
    seen: Seen | None = None,
    item_offset_N: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """hvp_j = sum_b P_bj (t_bj - mean_change_b) h_b for this block's items, [N, d].

    columns            slice of the K columns that hold the content half (h_b of a user); width d
    tangent_items_Nd   direction omega, one row an item of this block
    mean_change_B      sum over all items of P_bj t_bj, the positive's share included

    Column `skip_B[b]`, the positive, and `seen` are left out; the positive's own share is the caller's to scatter.
    Raises ValueError, naming the argument, for shapes, dtypes or devices that do not fit.
    """
    scores = ScorePass(users_BK, items_NK, total_B, skip_B, seen, item_offset_N)
    content, name = _checked(scores, tangent_items_Nd, columns, implementation)
    check_float("mean_change_B", mean_change_B, (len(users_BK),), users_BK)
    if name == "reference":
        return reference.softmax_all_items_hvp(scores, tangent_items_Nd, mean_change_B, content)
    return _hvp(*scores.flat(), item_offset_N, tangent_items_Nd, mean_change_B, content.start, content.stop, name)


def _checked(scores: ScorePass, tangent_items_Nd: Tensor, columns: slice, implementation: str) -> tuple[slice, str]:
    users_BK, items_NK = scores.users_BK, scores.items_NK
    check_score_pass(scores)
    check_item_offset(scores.item_offset_N, items_NK)
    content = content_columns(columns, users_BK.shape[1])
    check_float("tangent_items_Nd", tangent_items_Nd, (len(items_NK), content.stop - content.start), users_BK)
    return content, resolve(implementation, users_BK)


@op("softmax_mean_change")
def _mean_change(
    users: Tensor,
    items: Tensor,
    total: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    item_offset: Tensor | None,
    tangent_items: Tensor,
    start: int,
    stop: int,
    implementation: str,
) -> Tensor:
    scores = ScorePass.of(users, items, total, skip, offsets, columns, item_offset)
    return backend(implementation).softmax_mean_change(scores, tangent_items, slice(start, stop))


@_mean_change.register_fake
def _(users, items, *rest):  # type: ignore[no-untyped-def]
    return users.new_empty(len(users), dtype=accumulator_dtype(users.dtype))


@op("softmax_hvp")
def _hvp(
    users: Tensor,
    items: Tensor,
    total: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    item_offset: Tensor | None,
    tangent_items: Tensor,
    mean_change: Tensor,
    start: int,
    stop: int,
    implementation: str,
) -> Tensor:
    scores = ScorePass.of(users, items, total, skip, offsets, columns, item_offset)
    return backend(implementation).softmax_all_items_hvp(scores, tangent_items, mean_change, slice(start, stop))


@_hvp.register_fake
def _(users, items, total, skip, offsets, columns, item_offset, tangent_items, *rest):  # type: ignore[no-untyped-def]
    return users.new_empty(tangent_items.shape, dtype=accumulator_dtype(users.dtype))
