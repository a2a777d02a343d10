"""BPR against every item: per-user sum of softplus(score - positive score), twice differentiable."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from uatmc_kernels import reference, tiled
from uatmc_kernels._dispatch import (
    Implementation,
    Seen,
    check_float,
    check_index,
    check_scores,
    excluded_entries,
    resolve,
)


def bpr_all_items(
    users_BK: torch.Tensor,
    items_NK: torch.Tensor,
    positive_scores_B: torch.Tensor,
    skip_B: torch.Tensor,
    *,
    seen: Seen | None = None,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Per-user loss over this block of items: sum over j of softplus(s_bj - positive_score_b).

    Column `skip_B[b]` (the positive; -1: not in this block) is left out, and so are the entries of
    `seen`, a CSR pair (offsets [B+1], columns) of known positives, both int64 columns of this block.
    Inputs are float64, float32 or bfloat16; sums are kept in float32 (float64 for float64).
    Differentiable twice in users, items and positive scores (docs/algorithm.md, sections 2 and 4.2).

    Returns loss_B in the accumulator's dtype.
    Raises ValueError, naming the argument, for shapes, dtypes or devices that do not fit.
    """
    num_users, num_items, _ = check_scores(users_BK, items_NK)
    check_float("positive_scores_B", positive_scores_B, (num_users,), users_BK)
    check_index("skip_B", skip_B, (num_users,), users_BK)
    rows_E, columns_E = excluded_entries(skip_B, seen, num_users, num_items, users_BK.device)
    if resolve(implementation) == "reference":
        return reference.bpr_all_items(users_BK, items_NK, positive_scores_B, rows_E, columns_E)
    return _BprAllItems.apply(users_BK, items_NK, positive_scores_B, rows_E, columns_E)


class _BprAllItems(torch.autograd.Function):
    """Loss; where a gradient will be asked for, the same sweep also makes it for weights of one."""

    @staticmethod
    def forward(ctx: Any, users_BK, items_NK, positive_scores_B, rows_E, columns_E):  # type: ignore[override]
        inputs = (users_BK, items_NK, positive_scores_B, rows_E, columns_E)
        if not any(ctx.needs_input_grad[:3]):
            return tiled.bpr_loss(*inputs)
        loss_B, *unit_gradients = tiled.bpr_loss_and_gradients(*inputs, weights_B=None)
        ctx.save_for_backward(*inputs, *unit_gradients)
        return loss_B

    @staticmethod
    def backward(ctx: Any, weights_B):  # type: ignore[override]
        return (*_BprAllItemsBackward.apply(weights_B, *ctx.saved_tensors), None, None)


class _BprAllItemsBackward(torch.autograd.Function):
    """The gradients for given weights (cotangents of loss_B); its own backward is the second order."""

    @staticmethod
    def forward(ctx: Any, weights_B, users_BK, items_NK, positive_scores_B, rows_E, columns_E, *unit_gradients):  # type: ignore[override]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights_B, users_BK, items_NK, positive_scores_B, rows_E, columns_E)
        # A sum or a mean of loss_B hands every user the same weight, as an expanded scalar: then the
        # gradients of the forward sweep only need scaling, and no second sweep over the scores runs.
        if weights_B.stride() == (0,) or weights_B.numel() == 1:
            weight = weights_B[:1]
            gradients = tuple(gradient * weight for gradient in unit_gradients)
        else:
            gradients = tiled.bpr_loss_and_gradients(
                users_BK, items_NK, positive_scores_B, rows_E, columns_E, weights_B=weights_B
            )[1:]
        inputs = (users_BK, items_NK, positive_scores_B)
        return tuple(gradient.to(to.dtype) for gradient, to in zip(gradients, inputs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, tangent_users, tangent_items, tangent_positive):  # type: ignore[override]
        weights_B, users_BK, items_NK, positive_scores_B, rows_E, columns_E = ctx.saved_tensors
        inputs = (weights_B, users_BK, items_NK, positive_scores_B)
        tangents = (tangent_users, tangent_items, tangent_positive)
        second_order = tiled.bpr_second_order(
            weights_B, users_BK, items_NK, positive_scores_B, rows_E, columns_E, tangents=tangents
        )
        cast = [gradient.to(to.dtype) for gradient, to in zip(second_order, inputs, strict=True)]
        return (*cast, None, None, None, None, None)
