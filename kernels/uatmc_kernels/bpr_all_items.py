"""BPR against every item: per-user sum of softplus(score - positive score), twice differentiable.

Three ops of torch.library stand behind it, each the other's backward:

    bpr_loss_and_gradients    loss_B, and the gradients for weights of one, which the same pass has at hand
    bpr_gradients             gradients for given weights w (cotangents of loss_B)
    bpr_second_order          gradient of <tangents, those gradients>
"""

from typing import Any, Literal

import torch
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import ScorePass, Seen, accumulator_dtype, backend, check_score_pass, resolve
from uatmc_kernels._op import op


def bpr_all_items(
    users_BK: Tensor,
    items_NK: Tensor,
    positive_scores_B: Tensor,
    skip_B: Tensor,
    *,
    seen: Seen | None = None,
    implementation: Literal["auto", "reference", "tiled", "triton", "triton_atomic"] = "auto",
) -> Tensor:
    """Per-user loss over this block of items: sum over j of softplus(s_bj - positive_score_b).

    Column `skip_B[b]` (the positive; -1: not in this block) is left out, and so are the entries of
    `seen`, a CSR pair (offsets [B+1], columns) of known positives, both int64 columns of this block.
    Inputs are float64 (not for Triton), float32 or bfloat16; sums are kept in float32 (float64 for float64).
    Differentiable twice in users, items and positive scores (docs/algorithm.md, sections 2 and 4.2).
    "triton_atomic" makes loss and gradients in one sweep whose sums change in their last bits from run to run.

    Returns loss_B in the accumulator's dtype.
    Raises ValueError, naming the argument, for shapes, dtypes or devices that do not fit.
    """
    scores = ScorePass(users_BK, items_NK, positive_scores_B, skip_B, seen)
    check_score_pass(scores)
    name = resolve(implementation, users_BK, more=("triton_atomic",))
    if name == "reference":
        return reference.bpr_all_items(scores)
    inputs = *scores.flat(), name
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scores[:3])
    return _loss_and_gradients(*inputs)[0] if needs_gradient else _loss(*inputs)


@op("bpr_loss")
def _loss(
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    implementation: str,
) -> Tensor:
    return backend(implementation).bpr_loss(ScorePass.of(users, items, positive, skip, offsets, columns))


@_loss.register_fake
def _(users, items, positive, skip, offsets, columns, implementation):  # type: ignore[no-untyped-def]
    return users.new_empty(len(users), dtype=accumulator_dtype(users.dtype))


@op("bpr_loss_and_gradients")
def _loss_and_gradients(
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = ScorePass.of(users, items, positive, skip, offsets, columns)
    if implementation == "triton_atomic":
        return backend(implementation).bpr_loss_and_gradients_atomic(scores)
    return backend(implementation).bpr_loss_and_gradients(scores)


@_loss_and_gradients.register_fake
def _(users, items, positive, skip, offsets, columns, implementation):  # type: ignore[no-untyped-def]
    dtype = accumulator_dtype(users.dtype)
    loss_B, d_positive_B = users.new_empty(len(users), dtype=dtype), users.new_empty(len(users), dtype=dtype)
    return loss_B, users.new_empty(users.shape, dtype=dtype), users.new_empty(items.shape, dtype=dtype), d_positive_B


@op("bpr_gradients")
def _gradients(
    weights: Tensor,
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    unit_users: Tensor,
    unit_items: Tensor,
    unit_positive: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # A user's weight scales the user's own sums. The items' mix all users: they only scale where every weight is
    # the same, as after a sum or a mean; else they are swept again.
    if len(weights) < 2 or _all_equal(weights):
        d_items = unit_items * weights[:1] if len(weights) else torch.zeros_like(unit_items)
    else:
        scores = ScorePass.of(users, items, positive, skip, offsets, columns)
        d_items = backend(implementation).bpr_item_gradients(scores, weights)
    d_users, d_positive = unit_users * weights[:, None], unit_positive * weights
    return d_users.to(users.dtype), d_items.to(items.dtype), d_positive.to(positive.dtype)


def _all_equal(weights: Tensor) -> bool:
    """Always told from the strides of an expanded scalar; from the values only where no device has to be waited for."""
    if weights.stride() == (0,):
        return True
    return weights.device.type == "cpu" and bool((weights == weights[0]).all())


@_gradients.register_fake
def _(weights, users, items, positive, *rest):  # type: ignore[no-untyped-def]
    return users.new_empty(users.shape), items.new_empty(items.shape), positive.new_empty(positive.shape)


@op("bpr_second_order")
def _second_order(
    weights: Tensor,
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    tangent_users: Tensor | None,
    tangent_items: Tensor | None,
    tangent_positive: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = ScorePass.of(users, items, positive, skip, offsets, columns)
    tangents = tangent_users, tangent_items, tangent_positive
    results = backend(implementation).bpr_second_order(weights, scores, tangents)
    return tuple(result.to(to.dtype) for result, to in zip(results, (weights, *scores[:3]), strict=True))  # type: ignore[return-value]


@_second_order.register_fake
def _(weights, users, items, positive, *rest):  # type: ignore[no-untyped-def]
    return tuple(tensor.new_empty(tensor.shape) for tensor in (weights, users, items, positive))


def _save_first(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1], *output[1:])
    ctx.implementation = inputs[-1]


def _backward_first(ctx: Any, weights_B: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    if weights_B is None:
        return (None,) * 7
    gradients = _gradients(weights_B, *ctx.saved_tensors, ctx.implementation)
    return (*gradients, None, None, None, None)


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7])
    ctx.implementation = inputs[-1]


def _backward_second(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    if all(tangent is None for tangent in tangents):
        return (None,) * 11
    return (*_second_order(*ctx.saved_tensors, *tangents, ctx.implementation), *(None,) * 7)


_loss_and_gradients.register_autograd(_backward_first, setup_context=_save_first)
_gradients.register_autograd(_backward_second, setup_context=_save_second)
