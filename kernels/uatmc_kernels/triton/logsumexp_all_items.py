"""Triton passes of `uatmc_kernels.logsumexp_all_items`: deterministic sweeps by users and by items."""

import math

import torch
import triton

from uatmc_kernels._dispatch import ScorePass
from uatmc_kernels.triton._launches import as_rows, entries, split, vector
from uatmc_kernels.triton._math import FLUSH
from uatmc_kernels.triton._variants import VARIANTS, prepare


def logsumexp(scores: ScorePass) -> torch.Tensor:
    """lse_B from each split's largest score and sum."""
    users, items = as_rows(scores.users_BK), as_rows(scores.items_NK)
    (num_users, width), num_items = users.shape, len(items)
    if not (num_users and num_items):
        return users.new_full((num_users,), -torch.inf, dtype=torch.float32)
    prepared = prepare("logsumexp", {"K": width}, users)
    blocks = prepared.blocks
    num_tiles = triton.cdiv(num_users, blocks["BO"])
    splits, per_split = split(num_items, blocks["BS"], num_tiles, users)
    largest, sums = users.new_empty(2, splits, num_users, dtype=torch.float32).unbind(0)
    prepared.kernel[num_tiles, splits](
        users,
        items,
        vector(scores.skip_B, torch.int32),
        None if scores.item_offset_N is None else vector(scores.item_offset_N),
        largest_out=largest,
        sum_out=sums,
        num_owners=num_users,
        num_stream=num_items,
        per_split=per_split,
        **entries(scores.seen, True, blocks["BO"], blocks["BS"], num_users, num_items),
        OWNER_STRIDE=users.stride(0),
        STREAM_STRIDE=items.stride(0),
        K=width,
        **prepared.constants,
    )
    return torch.logsumexp(largest * math.log(2) + sums.log(), 0)


def logsumexp_gradients(scores: ScorePass, weights_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(d_users_BK, d_items_NK) for these weights; `scores` are relative to lse_B."""
    _, d_users_BK = sweep("softmax_of_users", scores)
    _, d_items_NK = sweep("softmax_of_items", scores, weights_B=weights_B)
    return d_users_BK * weights_B.float()[:, None], d_items_NK


def logsumexp_second_order(
    weights_B: torch.Tensor, scores: ScorePass, tangents: tuple[torch.Tensor | None, torch.Tensor | None]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of <tangents, first-order gradients> for (weights, users, items); `scores` are relative to lse_B."""
    dtype = scores.users_BK.dtype
    tangent_users, tangent_items = (None if tangent is None else tangent.to(dtype) for tangent in tangents)
    # t_bj = tangent_user_b . item_j + user_b . tangent_item_j, as one product of rows side by side.
    sides = [(tangent_users, scores.items_NK), (scores.users_BK, tangent_items)]
    there = [(left, right) for left, right in sides if left is not None and right is not None]
    change = torch.cat([left for left, _ in there], 1), torch.cat([right for _, right in there], 1)
    mean_B, _ = sweep("softmax_change", scores, change=change)
    _, d_users_BK = sweep("softmax_second_of_users", scores, scores.items_NK, change=change, mean_B=mean_B)
    _, d_items_NK = sweep("softmax_second_of_items", scores, scores.users_BK, weights_B, change, mean_B)
    if tangent_items is not None:
        d_users_BK += sweep("softmax_second_of_users", scores, tangent_items)[1]
    if tangent_users is not None:
        d_items_NK += sweep("softmax_second_of_items", scores, tangent_users, weights_B)[1]
    return mean_B, d_users_BK * weights_B.float()[:, None], d_items_NK


def sweep(
    name: str,
    scores: ScorePass,
    values: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
    change: tuple[torch.Tensor, torch.Tensor] | None = None,
    mean_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums by owner, gradient by owner) of `_softmax.softmax_sweep`; what the variant does not make is empty.

    `values` belong to the stream, `weights_B` and `mean_B` to the users, `change` to (users, items). Variants whose
    VALUES_ARE_THERE take none.
    """
    flags = VARIANTS[name].flags
    owner_is_user = flags["OWNER_IS_USER"]
    ordered = lambda pair: pair if owner_is_user else pair[::-1]  # noqa: E731
    owners, stream = ordered((as_rows(scores.users_BK), as_rows(scores.items_NK)))
    changes = (None, None) if change is None else ordered(tuple(as_rows(rows) for rows in change))
    if flags["VALUES_ARE_THERE"]:
        values = stream if changes[1] is None else changes[1]
    elif values is not None:
        values = as_rows(values)
    (num_owners, width), num_stream = owners.shape, len(stream)
    value_width = 0 if values is None else values.shape[1]
    make = lambda *shape: owners.new_zeros(*shape, dtype=torch.float32)  # noqa: E731
    if not (num_owners and num_stream):
        return make(num_owners), make(num_owners, value_width)
    widths = {"K": width, "D": width if changes[0] is None else changes[0].shape[1], "V": max(value_width, 1)}
    prepared = prepare(name, widths, owners, WITH_CHANGE=change is not None)
    blocks = prepared.blocks
    num_tiles = triton.cdiv(num_owners, blocks["BO"])
    num_slices = triton.cdiv(widths["V"], blocks["VO"]) if values is not None else 1
    splits, per_split = split(num_stream, blocks["BS"], num_tiles * num_slices, owners)
    accumulate = per_split > FLUSH.value
    make = owners.new_zeros if accumulate else owners.new_empty
    sums = make((splits, num_owners), dtype=torch.float32) if values is None else None
    gradient = None if values is None else make((splits, num_owners, value_width), dtype=torch.float32)
    prepared.kernel[num_tiles, splits, num_slices](
        owners=owners,
        stream=stream,
        owner_change=changes[0],
        stream_change=changes[1],
        values=values,
        positive=vector(scores.positive_scores_B),
        skip=vector(scores.skip_B, torch.int32),
        item_offset=None if scores.item_offset_N is None else vector(scores.item_offset_N),
        weights=None if weights_B is None else vector(weights_B),
        mean_change=None if mean_B is None else vector(mean_B),
        sums_out=sums,
        gradient_out=gradient,
        num_owners=num_owners,
        num_stream=num_stream,
        per_split=per_split,
        **entries(scores.seen, owner_is_user, blocks["BO"], blocks["BS"], num_owners, num_stream),
        OWNER_STRIDE=owners.stride(0),
        STREAM_STRIDE=stream.stride(0),
        OWNER_CHANGE_STRIDE=0 if changes[0] is None else changes[0].stride(0),
        STREAM_CHANGE_STRIDE=0 if changes[1] is None else changes[1].stride(0),
        VALUES_STRIDE=0 if values is None else values.stride(0),
        **widths,
        **{**prepared.constants, "ACCUMULATE": accumulate},
    )
    empty = owners.new_empty(0, dtype=torch.float32)
    return empty if sums is None else sums.sum(0), empty if gradient is None else gradient.sum(0)
