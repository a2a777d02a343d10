"""Kernels of the softmax passes: log-sum-exp of the scores, and sums weighted by exp(score - log-sum-exp).

As in _sweeps.py: owners are users or items, a program keeps the sums of its owners in registers, everything is in
base 2, and users beyond the last have an infinite shift, so that their share is zero.

    BO  owners of a tile             BS  rows of the stream in a tile
    KC  columns of one product of the scores           DC  the same of the changes
    VO  columns of one output slice                    HOIST  as there
"""

import triton
import triton.language as tl

from uatmc_kernels.triton._math import (
    FLUSH,
    LOG2E,
    dot,
    exp2,
    first_entry,
    leave_out,
    load_each,
    load_rows,
    load_users,
    narrow,
    opaque,
    put,
    put_rows,
    tiles_of,
    unless_equal,
    without_positive,
)
from uatmc_kernels.triton._sweeps import products


@triton.jit
def logsumexp(
    owners,
    stream,
    skip,
    item_offset,
    first_entries,
    entry_rows,
    entry_owners,
    largest_out,
    sum_out,
    num_owners,
    num_stream,
    per_split,
    OWNER_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    HOIST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Largest score (base 2) of each user and the sum of 2^(score - largest), carried along; users own tiles.

    Grid (tiles of users, splits of the items); each split has its own largest_out[split], sum_out[split].
    """
    owner = tl.program_id(0) * BO
    split = tl.program_id(1)
    rows = owner + tl.arange(0, BO)
    whole = 0
    if KC >= K:
        whole = load_rows(owners, owner, num_owners, OWNER_STRIDE, 0, K, BO, KC)
    skipped = load_each(skip, rows, num_owners, 1, -1, True)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_stream)
    if first_entries is not None:
        entry, entry_row = first_entry(first_entries, entry_rows, tl.program_id(0), start)
    largest = tl.full([BO], float("-inf"), tl.float32)
    total = tl.zeros([BO], tl.float32)
    for chunk in tl.range(start, stop, FLUSH, disable_licm=True):
        # Long sums in two steps: errors grow with FLUSH / BS + N / FLUSH additions, not with N / BS.
        part = tl.zeros([BO], tl.float32)
        for RAGGED in tl.static_range(2):
            begin, end = tiles_of(chunk, stop, RAGGED, BS)
            for first in tl.range(begin, end, BS, disable_licm=not HOIST):
                scores, _ = products(
                    owners, stream, whole, owner, num_owners, first, num_stream,
                    OWNER_STRIDE, STREAM_STRIDE, K, BO, BS, KC, PRECISION,
                )  # fmt: skip
                if item_offset is not None:
                    scores += load_each(item_offset, first + tl.arange(0, BS), stop, 0, 0.0, RAGGED)
                x = without_positive(scores * LOG2E, skipped, first, stop, RAGGED, BS)
                if first_entries is not None:
                    x, entry, entry_row = leave_out(
                        x, float("-inf"), entry_rows, entry_owners, entry, entry_row, first, BO, BS
                    )
                new = tl.maximum(largest, tl.max(x, 1))
                shift = tl.where(new == float("-inf"), 0.0, new)
                scale = exp2(largest - shift)
                part = part * scale + tl.sum(exp2(x - shift[:, None]), 1)
                total *= scale
                largest = new
        total += part
    mine = rows < num_owners
    put(largest_out + split * num_owners + rows, largest, mine, False)
    put(sum_out + split * num_owners + rows, total, mine, False)


@triton.jit
def softmax_sweep(
    owners,
    stream,
    owner_change,
    stream_change,
    values,
    positive,
    skip,
    item_offset,
    weights,
    mean_change,
    first_entries,
    entry_rows,
    entry_owners,
    sums_out,
    gradient_out,
    num_owners,
    num_stream,
    per_split,
    OWNER_IS_USER: tl.constexpr,
    WITH_CHANGE: tl.constexpr,
    VALUES_ARE_THERE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OWNER_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    OWNER_CHANGE_STRIDE: tl.constexpr,
    STREAM_CHANGE_STRIDE: tl.constexpr,
    VALUES_STRIDE: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    DC: tl.constexpr,
    VO: tl.constexpr,
    HOIST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums over the stream with p = exp(score - shift of the user), for one side's rows.

    a = p, or with a change t = owner_change . stream_change: a = p (t - mean_change of the user).
    gradient = (weight of the user . a) . values; without values only sums_out, the sum of a of each owner.
    VALUES_ARE_THERE: the values are the rows of the stream, of stream_change with a change, whose tile is there.
    Grid (tiles of owners, splits of the stream, slices of the values' columns); outputs as in `_sweeps.sweep`.
    """
    owner = tl.program_id(0) * BO
    split = tl.program_id(1)
    slice_v = tl.program_id(2) * VO
    rows = owner + tl.arange(0, BO)
    whole = 0
    if KC >= K:
        whole = load_rows(owners, owner, num_owners, OWNER_STRIDE, 0, K, BO, KC)
    whole_change = 0
    if WITH_CHANGE:
        if DC >= D:
            whole_change = load_rows(owner_change, owner, num_owners, OWNER_CHANGE_STRIDE, 0, D, BO, DC)
    if OWNER_IS_USER:
        shift, skipped = load_users(positive, skip, rows, num_owners, 1, True)
        if mean_change is not None:
            mean = load_each(mean_change, rows, num_owners, 1, 0.0, True)
    else:
        if item_offset is not None:
            own_offset = load_each(item_offset, rows, num_owners, 1, 0.0, True)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_stream)
    if first_entries is not None:
        entry, entry_row = first_entry(first_entries, entry_rows, tl.program_id(0), start)
    for chunk in tl.range(start, stop, FLUSH, disable_licm=True):
        sums = tl.zeros([BO], tl.float32)
        gradient = tl.zeros([BO, VO], tl.float32)
        for RAGGED in tl.static_range(2):
            begin, end = tiles_of(chunk, stop, RAGGED, BS)
            for first in tl.range(begin, end, BS, disable_licm=not HOIST):
                scores, tile = products(
                    owners, stream, whole, owner, num_owners, first, num_stream,
                    OWNER_STRIDE, STREAM_STRIDE, K, BO, BS, KC, PRECISION,
                )  # fmt: skip
                columns = first + tl.arange(0, BS)
                if OWNER_IS_USER:
                    if item_offset is not None:
                        scores += load_each(item_offset, columns, stop, 0, 0.0, RAGGED)
                    x = without_positive(scores * LOG2E - shift, skipped, first, stop, RAGGED, BS)
                else:
                    shift, skipped = load_users(positive, skip, columns, stop, 0, RAGGED)
                    if item_offset is not None:
                        scores += own_offset
                    if mean_change is not None:
                        mean = load_each(mean_change, columns, stop, 0, 0.0, RAGGED)
                    x = unless_equal(scores * LOG2E - shift, rows[:, None], skipped)
                if first_entries is not None:
                    x, entry, entry_row = leave_out(
                        x, float("-inf"), entry_rows, entry_owners, entry, entry_row, first, BO, BS
                    )
                share = exp2(x)
                if WITH_CHANGE:
                    change, tile = products(
                        owner_change, stream_change, whole_change, owner, num_owners, first, num_stream,
                        OWNER_CHANGE_STRIDE, STREAM_CHANGE_STRIDE, D, BO, BS, DC, PRECISION,
                    )  # fmt: skip
                    if mean_change is not None:
                        change -= mean
                    share *= change
                if sums_out is not None:
                    sums += tl.sum(share, 1)
                if values is not None:
                    if weights is not None:
                        share *= load_each(weights, columns, stop, 0, 0.0, RAGGED)
                    if (not VALUES_ARE_THERE) or (VO < V) or (DC < D if WITH_CHANGE else KC < K):
                        tile = load_rows(values, first, num_stream, VALUES_STRIDE, slice_v, V, BS, VO)
                    gradient = dot(narrow(share, tile.dtype), tile, gradient, PRECISION)
        first_split = opaque(tl.program_id(1)) * num_owners
        first_out, first_v = first_split + opaque(tl.program_id(0)) * BO, opaque(tl.program_id(2)) * VO
        end_out = first_split + num_owners
        if sums_out is not None:
            out = first_out + tl.arange(0, BO)
            put(sums_out + out, sums, out < tl.where(first_v == 0, end_out, 0), ACCUMULATE)
        if values is not None:
            put_rows(gradient_out, first_out, end_out, V, first_v, gradient, V, BO, VO, ACCUMULATE)
