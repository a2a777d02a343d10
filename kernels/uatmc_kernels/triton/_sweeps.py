"""Kernels of the BPR score passes: what each computes for one tile of owners against a stream of the other side.

x_os = owner . stream - positive score, in base 2; users beyond the last have an infinite positive score, so that
x is -inf and all that follows from it zero. Owners are users or items; every program keeps the sums of its
owners in registers, so that nothing of size B x N is written and no two programs add to one address. RAGGED is the
pass over the last tile of the stream, which alone asks which of its columns there are.
disable_licm: what could be computed once before a loop takes registers as long as it runs, and may mean smaller tiles.

    BO  owners of a tile             BS  rows of the stream in a tile
    KC  columns of one product       KO  columns of one output slice
    HOIST  whether what can be computed once before the loop over the stream is
"""

import triton
import triton.language as tl

from uatmc_kernels.triton._math import (
    FLUSH,
    LN2,
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
    reciprocal,
    sigmoid,
    softplus_sums,
    tiles_of,
    unless_equal,
    without_positive,
)


@triton.jit
def products(
    owners,
    stream,
    whole,
    owner,
    num_owners,
    first,
    num_stream,
    OWNER_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(owners . stream [BO, BS], the stream's tile). `whole` holds the owners' rows where one product spans K."""
    if KC >= K:
        tile = load_rows(stream, first, num_stream, STREAM_STRIDE, 0, K, BS, KC)
        scores = dot(whole, tl.trans(tile), tl.zeros([BO, BS], tl.float32), PRECISION)
    else:
        tile = 0
        scores = tl.zeros([BO, BS], tl.float32)
        for k in range(0, K, KC):
            part = load_rows(owners, owner, num_owners, OWNER_STRIDE, k, K, BO, KC)
            other = load_rows(stream, first, num_stream, STREAM_STRIDE, k, K, BS, KC)
            scores = dot(part, tl.trans(other), scores, PRECISION)
    return scores, tile


@triton.jit
def sweep(
    owners,
    stream,
    positive,
    skip,
    weights,
    first_entries,
    entry_rows,
    entry_owners,
    loss_out,
    sigma_out,
    gradient_out,
    num_owners,
    num_stream,
    per_split,
    OWNER_IS_USER: tl.constexpr,
    WITH_LOSS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OWNER_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    KO: tl.constexpr,
    HOIST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """First order: loss and sum of sigma of each owner (users), and the gradient sigma . stream.

    Grid (tiles of owners, splits of the stream, slices of the gradient's columns). Each split has its own
    loss_out[split], sigma_out[split], gradient_out[split], so that no two programs share an address. With
    ACCUMULATE these start at zero and registers are added to them every FLUSH rows; else they are written once.
    """
    owner = tl.program_id(0) * BO
    split = tl.program_id(1)
    slice_k = tl.program_id(2) * KO
    rows = owner + tl.arange(0, BO)
    whole = 0
    if KC >= K:
        whole = load_rows(owners, owner, num_owners, OWNER_STRIDE, 0, K, BO, KC)
    if OWNER_IS_USER:
        shift, skipped = load_users(positive, skip, rows, num_owners, 1, True)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_stream)
    if first_entries is not None:
        entry, entry_row = first_entry(first_entries, entry_rows, tl.program_id(0), start)
    for chunk in tl.range(start, stop, FLUSH, disable_licm=True):
        loss = tl.zeros([BO], tl.float32)
        sigmas = tl.zeros([BO], tl.float32)
        gradient = tl.zeros([BO, KO], tl.float32)
        for RAGGED in tl.static_range(2):
            begin, end = tiles_of(chunk, stop, RAGGED, BS)
            for first in tl.range(begin, end, BS, disable_licm=not HOIST):
                scores, tile = products(
                    owners, stream, whole, owner, num_owners, first, num_stream,
                    OWNER_STRIDE, STREAM_STRIDE, K, BO, BS, KC, PRECISION,
                )  # fmt: skip
                columns = first + tl.arange(0, BS)
                if OWNER_IS_USER:
                    x = without_positive(scores * LOG2E - shift, skipped, first, stop, RAGGED, BS)
                else:
                    shift, skipped = load_users(positive, skip, columns, stop, 0, RAGGED)
                    x = unless_equal(scores * LOG2E - shift, rows[:, None], skipped)
                if first_entries is not None:
                    x, entry, entry_row = leave_out(
                        x, float("-inf"), entry_rows, entry_owners, entry, entry_row, first, BO, BS
                    )
                if WITH_LOSS:
                    z = exp2(-tl.abs(x))
                    inverse = reciprocal(1.0 + z)
                    sigma = inverse * tl.where(x >= 0, 1.0, z)
                    loss += softplus_sums(x, z, 1)
                    if WITH_GRADIENT:
                        sigmas += tl.sum(sigma, 1)
                else:
                    sigma = sigmoid(x)
                if WITH_GRADIENT:
                    if weights is not None:
                        sigma *= load_each(weights, columns, stop, 0, 0.0, RAGGED)
                    if (KC < K) or (KO < K):
                        tile = load_rows(stream, first, num_stream, STREAM_STRIDE, slice_k, K, BS, KO)
                    gradient = dot(narrow(sigma, tile.dtype), tile, gradient, PRECISION)
        first_out, first_k = opaque(split * num_owners + owner), opaque(tl.program_id(2)) * KO
        end_out = first_out - owner + num_owners
        if WITH_LOSS:
            out = first_out + tl.arange(0, BO)
            mine = out < tl.where(first_k == 0, end_out, 0)
            put(loss_out + out, loss * LN2, mine, ACCUMULATE)
            if WITH_GRADIENT:
                put(sigma_out + out, sigmas, mine, ACCUMULATE)
        if WITH_GRADIENT:
            put_rows(gradient_out, first_out, end_out, K, first_k, gradient, K, BO, KO, ACCUMULATE)


@triton.jit
def atomic_sweep(
    users,
    items,
    positive,
    skip,
    first_entries,
    entry_rows,
    entry_owners,
    loss_out,
    sigma_out,
    d_users_out,
    d_items_out,
    num_users,
    num_items,
    USER_STRIDE: tl.constexpr,
    ITEM_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    KO: tl.constexpr,
    HOIST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Loss and all gradients from one sweep: items own tiles, what belongs to users is added by atomics.

    The order of additions changes from run to run. Grid (tiles of items, 1, slices of the gradients' columns).
    """
    owner = tl.program_id(0) * BO
    slice_k = tl.program_id(2) * KO
    rows = owner + tl.arange(0, BO)
    whole = 0
    if KC >= K:
        whole = load_rows(items, owner, num_items, ITEM_STRIDE, 0, K, BO, KC)
    if first_entries is not None:
        entry, entry_row = first_entry(first_entries, entry_rows, tl.program_id(0), 0)
    d_items = tl.zeros([BO, KO], tl.float32)
    for first in tl.range(0, num_users, BS, disable_licm=not HOIST):
        scores, tile = products(
            items, users, whole, owner, num_items, first, num_users,
            ITEM_STRIDE, USER_STRIDE, K, BO, BS, KC, PRECISION,
        )  # fmt: skip
        columns = first + tl.arange(0, BS)
        shift, skipped = load_users(positive, skip, columns, num_users, 0, True)
        kept = (rows < num_items)[:, None] & (rows[:, None] != skipped)
        x = tl.where(kept, scores * LOG2E - shift, float("-inf"))
        if first_entries is not None:
            x, entry, entry_row = leave_out(x, float("-inf"), entry_rows, entry_owners, entry, entry_row, first, BO, BS)
        z = exp2(-tl.abs(x))
        inverse = reciprocal(1.0 + z)
        sigma = inverse * tl.where(x >= 0, 1.0, z)
        mine = columns < tl.where(slice_k == 0, num_users, 0)
        put(loss_out + columns, softplus_sums(x, z, 0) * LN2, mine, True)
        put(sigma_out + columns, tl.sum(sigma, 0), mine, True)
        if (KC < K) or (KO < K):
            tile = load_rows(users, first, num_users, USER_STRIDE, slice_k, K, BS, KO)
        d_items = dot(narrow(sigma, tile.dtype), tile, d_items, PRECISION)
        if (KC >= K) and (KO >= K):
            own = whole
        else:
            own = load_rows(items, owner, num_items, ITEM_STRIDE, slice_k, K, BO, KO)
        d_users = dot(narrow(tl.trans(sigma), own.dtype), own, tl.zeros([BS, KO], tl.float32), PRECISION)
        put_rows(d_users_out, first, num_users, K, slice_k, d_users, K, BS, KO, True)
    put_rows(d_items_out, owner, num_items, K, slice_k, d_items, K, BO, KO, False)


@triton.jit
def hvp(
    users,
    items,
    content,
    tangent,
    positive,
    skip,
    tangent_positive,
    first_entries,
    entry_rows,
    entry_owners,
    hvp_out,
    row_sums_out,
    num_users,
    num_items,
    num_tiles,
    tiles_per_program,
    USER_STRIDE: tl.constexpr,
    ITEM_STRIDE: tl.constexpr,
    CONTENT_STRIDE: tl.constexpr,
    TANGENT_STRIDE: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    DC: tl.constexpr,
    DO: tl.constexpr,
    HOIST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dA = sigma (1 - sigma) (tangent . content - tangent_positive); hvp = dA . content, row sums of dA by user.

    Grid (programs, 1, slices of the content's columns): a program walks over neighbouring tiles of items and
    adds its share of the row sums to its own row_sums_out[program], so that one sweep is enough and its result
    does not depend on the order in which programs run.
    """
    program = tl.program_id(0)
    slice_d = tl.program_id(2) * DO
    last_tile = tl.minimum((program + 1) * tiles_per_program, num_tiles)
    for owner_tile in tl.range(program * tiles_per_program, last_tile, disable_licm=True):
        owner = owner_tile * BO
        rows = owner + tl.arange(0, BO)
        whole = 0
        whole_tangent = 0
        if KC >= K:
            whole = load_rows(items, owner, num_items, ITEM_STRIDE, 0, K, BO, KC)
        if DC >= D:
            whole_tangent = load_rows(tangent, owner, num_items, TANGENT_STRIDE, 0, D, BO, DC)
        if first_entries is not None:
            entry, entry_row = first_entry(first_entries, entry_rows, owner_tile, 0)
        result = tl.zeros([BO, DO], tl.float32)
        for first in tl.range(0, num_users, BS, disable_licm=not HOIST):
            scores, _ = products(
                items, users, whole, owner, num_items, first, num_users,
                ITEM_STRIDE, USER_STRIDE, K, BO, BS, KC, PRECISION,
            )  # fmt: skip
            change, tile = products(
                tangent, content, whole_tangent, owner, num_items, first, num_users,
                TANGENT_STRIDE, CONTENT_STRIDE, D, BO, BS, DC, PRECISION,
            )  # fmt: skip
            columns = first + tl.arange(0, BS)
            shift, skipped = load_users(positive, skip, columns, num_users, 0, True)
            of_positive = load_each(tangent_positive, columns, num_users, 0, 0.0, True)
            x = unless_equal(scores * LOG2E - shift, rows[:, None], skipped)
            x = tl.where((rows < num_items)[:, None], x, float("-inf"))
            if first_entries is not None:
                x, entry, entry_row = leave_out(
                    x, float("-inf"), entry_rows, entry_owners, entry, entry_row, first, BO, BS
                )
            z = exp2(-tl.abs(x))
            inverse = reciprocal(1.0 + z)
            second = (z * inverse) * inverse * (change - of_positive)
            mine = columns < tl.where(slice_d == 0, num_users, 0)
            row_sums = row_sums_out + tl.cast(program, tl.int64) * num_users + columns
            put(row_sums, tl.sum(second, 0), mine, True)
            if (DC < D) or (DO < D):
                tile = load_rows(content, first, num_users, CONTENT_STRIDE, slice_d, D, BS, DO)
            result = dot(narrow(second, tile.dtype), tile, result, PRECISION)
        put_rows(hvp_out, opaque(owner), num_items, D, opaque(tl.program_id(2)) * DO, result, D, BO, DO, False)


@triton.jit
def products_and_changes(
    owners,
    owner_tangent,
    stream,
    stream_tangent,
    whole,
    whole_tangent,
    owner,
    num_owners,
    first,
    num_stream,
    OWNER_STRIDE: tl.constexpr,
    OWNER_TANGENT_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    STREAM_TANGENT_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(owners . stream, owner_tangent . stream + owners . stream_tangent, the tiles of the stream and of its tangent).

    A side without tangent is None. `whole` and `whole_tangent` hold the owners' rows where one product spans K.
    """
    scores = tl.zeros([BO, BS], tl.float32)
    change = tl.zeros([BO, BS], tl.float32)
    tile, tangent_tile = 0, 0
    if KC >= K:
        tile = load_rows(stream, first, num_stream, STREAM_STRIDE, 0, K, BS, KC)
        scores = dot(whole, tl.trans(tile), scores, PRECISION)
        if owner_tangent is not None:
            change = dot(whole_tangent, tl.trans(tile), change, PRECISION)
        if stream_tangent is not None:
            tangent_tile = load_rows(stream_tangent, first, num_stream, STREAM_TANGENT_STRIDE, 0, K, BS, KC)
            change = dot(whole, tl.trans(tangent_tile), change, PRECISION)
    else:
        for k in range(0, K, KC):
            own = load_rows(owners, owner, num_owners, OWNER_STRIDE, k, K, BO, KC)
            other = tl.trans(load_rows(stream, first, num_stream, STREAM_STRIDE, k, K, BS, KC))
            scores = dot(own, other, scores, PRECISION)
            if owner_tangent is not None:
                part = load_rows(owner_tangent, owner, num_owners, OWNER_TANGENT_STRIDE, k, K, BO, KC)
                change = dot(part, other, change, PRECISION)
            if stream_tangent is not None:
                part = tl.trans(load_rows(stream_tangent, first, num_stream, STREAM_TANGENT_STRIDE, k, K, BS, KC))
                change = dot(own, part, change, PRECISION)
    return scores, change, tile, tangent_tile


@triton.jit
def second_order(
    owners,
    stream,
    owner_tangent,
    stream_tangent,
    positive,
    skip,
    weights,
    tangent_positive,
    first_entries,
    entry_rows,
    entry_owners,
    gradient_out,
    d_weights_out,
    d_sigma_out,
    num_owners,
    num_stream,
    per_split,
    OWNER_IS_USER: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OWNER_STRIDE: tl.constexpr,
    STREAM_STRIDE: tl.constexpr,
    OWNER_TANGENT_STRIDE: tl.constexpr,
    STREAM_TANGENT_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    KO: tl.constexpr,
    HOIST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of sum_bj w sigma(x) t, with t = tangent . other side - tangent_positive, for one side's rows.

    gradient = D . stream + (w sigma) . stream_tangent with D = w sigma (1 - sigma) t; for users also the sums
    of sigma t (the weights' gradient) and of D. A side without tangent is passed as None.
    Grid and outputs as in `sweep`.
    """
    owner = tl.program_id(0) * BO
    split = tl.program_id(1)
    slice_k = tl.program_id(2) * KO
    rows = owner + tl.arange(0, BO)
    whole, whole_tangent = 0, 0
    if KC >= K:
        whole = load_rows(owners, owner, num_owners, OWNER_STRIDE, 0, K, BO, KC)
        if owner_tangent is not None:
            whole_tangent = load_rows(owner_tangent, owner, num_owners, OWNER_TANGENT_STRIDE, 0, K, BO, KC)
    if OWNER_IS_USER:
        shift, skipped = load_users(positive, skip, rows, num_owners, 1, True)
        weight = load_each(weights, rows, num_owners, 1, 0.0, True)
        of_positive = load_each(tangent_positive, rows, num_owners, 1, 0.0, True)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_stream)
    if first_entries is not None:
        entry, entry_row = first_entry(first_entries, entry_rows, tl.program_id(0), start)
    for chunk in tl.range(start, stop, FLUSH, disable_licm=True):
        d_weights = tl.zeros([BO], tl.float32)
        d_sigmas = tl.zeros([BO], tl.float32)
        gradient = tl.zeros([BO, KO], tl.float32)
        # Items have one loop over all tiles: a second one takes registers that are short here.
        for RAGGED in tl.static_range(0 if OWNER_IS_USER else 1, 2):
            begin, end = tiles_of(chunk, stop, RAGGED, BS)
            if not OWNER_IS_USER:
                begin = chunk
            for first in tl.range(begin, end, BS, disable_licm=not HOIST):
                columns = first + tl.arange(0, BS)
                if not OWNER_IS_USER:
                    shift, skipped = load_users(positive, skip, columns, stop, 0, RAGGED)
                    weight = load_each(weights, columns, stop, 0, 0.0, RAGGED)
                    of_positive = load_each(tangent_positive, columns, stop, 0, 0.0, RAGGED)
                scores, change, tile, tangent_tile = products_and_changes(
                    owners, owner_tangent, stream, stream_tangent, whole, whole_tangent,
                    owner, num_owners, first, num_stream,
                    OWNER_STRIDE, OWNER_TANGENT_STRIDE, STREAM_STRIDE, STREAM_TANGENT_STRIDE, K, BO, BS, KC, PRECISION,
                )  # fmt: skip
                if OWNER_IS_USER:
                    x = without_positive(scores * LOG2E - shift, skipped, first, stop, RAGGED, BS)
                else:
                    x = unless_equal(scores * LOG2E - shift, rows[:, None], skipped)
                if first_entries is not None:
                    x, entry, entry_row = leave_out(
                        x, float("-inf"), entry_rows, entry_owners, entry, entry_row, first, BO, BS
                    )
                z = exp2(-tl.abs(x))
                inverse = reciprocal(1.0 + z)
                sigma = inverse * tl.where(x >= 0, 1.0, z)
                along = sigma * (change - of_positive)
                second = along * (inverse * tl.where(x >= 0, z, 1.0)) * weight
                if OWNER_IS_USER:
                    d_weights += tl.sum(along, 1)
                    d_sigmas += tl.sum(second, 1)
                if (KC < K) or (KO < K):
                    tile = load_rows(stream, first, num_stream, STREAM_STRIDE, slice_k, K, BS, KO)
                gradient = dot(narrow(second, tile.dtype), tile, gradient, PRECISION)
                if stream_tangent is not None:
                    if (KC < K) or (KO < K):
                        tangent_tile = load_rows(
                            stream_tangent, first, num_stream, STREAM_TANGENT_STRIDE, slice_k, K, BS, KO
                        )
                    gradient = dot(narrow(sigma * weight, tile.dtype), tangent_tile, gradient, PRECISION)
        first_out, first_k = opaque(split * num_owners + owner), opaque(tl.program_id(2)) * KO
        end_out = first_out - owner + num_owners
        if OWNER_IS_USER:
            out = first_out + tl.arange(0, BO)
            mine = out < tl.where(first_k == 0, end_out, 0)
            put(d_weights_out + out, d_weights, mine, ACCUMULATE)
            put(d_sigma_out + out, d_sigmas, mine, ACCUMULATE)
        put_rows(gradient_out, first_out, end_out, K, first_k, gradient, K, BO, KO, ACCUMULATE)
