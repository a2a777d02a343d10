"""log-sum-exp of every user's scores over all items, twice differentiable: the heart of a full softmax loss.

Three ops of torch.library stand behind it, each the other's backward. The gradients' p_bj = exp(s_bj - lse_b) needs the
sum first, so they sweep anew:

    lse               lse_B, in one sweep that carries the largest score and the sum
    lse_gradients     gradients for given weights w (cotangents of lse_B)
    lse_second_order  gradient of <tangents, those gradients>
"""

from typing import Any

import torch
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import (
    Implementation,
    ScorePass,
    Seen,
    accumulator_dtype,
    backend,
    check_index,
    check_item_offset,
    check_scores,
    resolve,
)
from uatmc_kernels._op import op


def logsumexp_all_items(
    users_BK: Tensor,
    items_NK: Tensor,
    skip_B: Tensor,
    *,
    seen: Seen | None = None,
    item_offset_N: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """log of the sum over this block's items of exp(s_bj + o_j), [B]; -inf for a user to whom no item is left.

    `item_offset_N` (o, zero where not given) is a constant of each item, such as the log of its share in a sample.
    Column `skip_B[b]` (-1: none) is left out, and so are the entries of `seen`, a CSR pair (offsets [B+1], columns) of
    int64 columns of this block. Inputs are float64 (not for Triton), float32 or bfloat16; sums are kept in float32
    (float64 for float64). Differentiable twice in users and items (docs/algorithm.md, section 2).

    Returns lse_B in the accumulator's dtype.
    Raises ValueError, naming the argument, for shapes, dtypes or devices that do not fit.
    """
    check_scores(users_BK, items_NK, seen)
    check_index("skip_B", skip_B, (len(users_BK),), users_BK)
    check_item_offset(item_offset_N, items_NK)
    name = resolve(implementation, users_BK)
    inputs = users_BK, items_NK, skip_B, *(seen or (None, None)), item_offset_N
    if name == "reference":
        return reference.logsumexp_all_items(_absolute(*inputs))
    return _lse(*inputs, name)


def _absolute(
    users: Tensor,
    items: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    item_offset: Tensor | None,
) -> ScorePass:
    """Scores as they are, relative to nothing."""
    zeros = users.new_zeros(len(users), dtype=accumulator_dtype(users.dtype))
    return ScorePass.of(users, items, zeros, skip, offsets, columns, item_offset)


@op("lse")
def _lse(
    users: Tensor,
    items: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    item_offset: Tensor | None,
    implementation: str,
) -> Tensor:
    return backend(implementation).logsumexp(_absolute(users, items, skip, offsets, columns, item_offset))


@_lse.register_fake
def _(users, items, *rest):  # type: ignore[no-untyped-def]
    return users.new_empty(len(users), dtype=accumulator_dtype(users.dtype))


@op("lse_gradients")
def _gradients(
    weights: Tensor,
    lse: Tensor,
    users: Tensor,
    items: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    item_offset: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    scores = ScorePass.of(users, items, _finite(lse), skip, offsets, columns, item_offset)
    d_users, d_items = backend(implementation).logsumexp_gradients(scores, weights)
    return d_users.to(users.dtype), d_items.to(items.dtype)


def _finite(lse: Tensor) -> Tensor:
    """What scores are taken relative to: any number will do where no item is left."""
    return lse.masked_fill(lse == -torch.inf, 0)


@_gradients.register_fake
def _(weights, lse, users, items, *rest):  # type: ignore[no-untyped-def]
    return users.new_empty(users.shape), items.new_empty(items.shape)


@op("lse_second_order")
def _second_order(
    weights: Tensor,
    lse: Tensor,
    users: Tensor,
    items: Tensor,
    skip: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    item_offset: Tensor | None,
    tangent_users: Tensor | None,
    tangent_items: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = ScorePass.of(users, items, _finite(lse), skip, offsets, columns, item_offset)
    results = backend(implementation).logsumexp_second_order(weights, scores, (tangent_users, tangent_items))
    return tuple(result.to(to.dtype) for result, to in zip(results, (weights, users, items), strict=True))  # type: ignore[return-value]


@_second_order.register_fake
def _(weights, lse, users, items, *rest):  # type: ignore[no-untyped-def]
    return tuple(tensor.new_empty(tensor.shape) for tensor in (weights, users, items))


def _save_first(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:-1])
    ctx.implementation = inputs[-1]


def _backward_first(ctx: Any, weights_B: Tensor) -> tuple[Tensor | None, ...]:
    lse_B, *inputs = ctx.saved_tensors
    # Its own derivative is part of the second order below, so the saved sum is a constant here.
    gradients = _gradients(weights_B, lse_B.detach(), *inputs, ctx.implementation)
    return (*gradients, None, None, None, None, None)


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1])
    ctx.implementation = inputs[-1]


def _backward_second(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    if all(tangent is None for tangent in tangents):
        return (None,) * 9
    d_weights, d_users, d_items = _second_order(*ctx.saved_tensors, *tangents, ctx.implementation)
    return d_weights, None, d_users, d_items, None, None, None, None, None


_lse.register_autograd(_backward_first, setup_context=_save_first)
_gradients.register_autograd(_backward_second, setup_context=_save_second)
