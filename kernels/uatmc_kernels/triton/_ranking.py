"""Kernels for ranking: a streaming top-k of each user, and counts of the users in whose reach an item is.

BO  owners of a tile    BS  rows of the stream in a tile    KC  columns of one product    KEPT  slots of a ranking
"""

import triton
import triton.language as tl

from uatmc_kernels.triton._math import INTERPRETED, first_entry, leave_out, load_rows
from uatmc_kernels.triton._sweeps import products

# Below every real key; slot c of an empty ranking holds NOTHING + c, so that all slots differ.
NOTHING = tl.constexpr(-(2**63))
FULL = tl.constexpr(2**63 - 1)


@triton.jit
def _any(flags):
    """Whether one of [R] flags is set. Not by a reduction of one dimension: where its flags come from tensor memory and
    a branch hangs on it, Triton 3.7.1 fails. The interpreter knows no `item`."""
    if INTERPRETED:
        return tl.max(flags.to(tl.int32), 0) > 0
    return tl.max(flags.to(tl.int32)[:, None], 0).item() > 0


@triton.jit
def topk(
    users,
    items,
    first_entries,
    entry_rows,
    entry_owners,
    best_out,
    num_users,
    num_items,
    per_split,
    k,
    USER_STRIDE: tl.constexpr,
    ITEM_STRIDE: tl.constexpr,
    K: tl.constexpr,
    KEPT: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The k best keys of each user in each split, unordered. Grid (tiles of users, splits).

    A key is the score's bits in an order-preserving form above, the inverted item below: all keys differ. A tile
    gives its largest key to the ranking, in place of the smallest there, until no user of the tile gains: after
    the first tiles that is seldom more than once, while sorting every tile would cost 21 rounds.
    """
    owner = tl.program_id(0) * BO
    split = tl.program_id(1)
    rows = owner + tl.arange(0, BO)
    whole = 0
    if KC >= K:
        whole = load_rows(users, owner, num_users, USER_STRIDE, 0, K, BO, KC)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_items)
    if first_entries is not None:
        entry, entry_row = first_entry(first_entries, entry_rows, tl.program_id(0), start)
    slots = tl.arange(0, KEPT)
    empty = tl.where(slots < k, slots.to(tl.int64) + NOTHING, FULL)
    best = tl.zeros([BO, KEPT], tl.int64) + empty[None, :]
    worst = tl.min(best, 1)
    for first in range(start, stop, BS):
        scores, _ = products(
            users, items, whole, owner, num_users, first, num_items,
            USER_STRIDE, ITEM_STRIDE, K, BO, BS, KC, PRECISION,
        )  # fmt: skip
        columns = first + tl.arange(0, BS)
        kept = (columns < stop)[None, :] & (rows < num_users)[:, None]
        bits = (scores + 0.0).to(tl.int32, bitcast=True)  # + 0.0: no negative zero
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        key = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - columns.to(tl.int64))[None, :]
        key = tl.where(kept, key, NOTHING)
        if first_entries is not None:
            key, entry, entry_row = leave_out(key, NOTHING, entry_rows, entry_owners, entry, entry_row, first, BO, BS)
        top = tl.max(key, 1)
        if _any(top > worst):  # a branch of its own as in `leave_out`
            while _any(top > worst):
                replaced = (best == worst[:, None]) & (top > worst)[:, None]
                best = tl.where(replaced, top[:, None], best)
                key = tl.where(key == top[:, None], NOTHING, key)
                top = tl.max(key, 1)
                worst = tl.min(best, 1)
    out = best_out + (tl.cast(split, tl.int64) * num_users + rows[:, None]) * k + slots[None, :]
    tl.store(out, best, mask=(rows < num_users)[:, None] & (slots < k)[None, :])


@triton.jit
def count_above(
    users,
    items,
    thresholds,
    bonus,
    counts_out,
    num_users,
    num_items,
    per_split,
    USER_STRIDE: tl.constexpr,
    ITEM_STRIDE: tl.constexpr,
    K: tl.constexpr,
    BO: tl.constexpr,
    BS: tl.constexpr,
    KC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Users with score + bonus > threshold, by item. Grid (tiles of items, splits of the users); sums of integers."""
    owner = tl.program_id(0) * BO
    split = tl.program_id(1)
    rows = owner + tl.arange(0, BO)
    whole = 0
    if KC >= K:
        whole = load_rows(items, owner, num_items, ITEM_STRIDE, 0, K, BO, KC)
    start = split * per_split
    stop = tl.minimum(start + per_split, num_users)
    counts = tl.zeros([BO], tl.int32)
    for first in range(start, stop, BS):
        scores, _ = products(
            items, users, whole, owner, num_items, first, num_users,
            ITEM_STRIDE, USER_STRIDE, K, BO, BS, KC, PRECISION,
        )  # fmt: skip
        columns = first + tl.arange(0, BS)
        here = columns < stop
        threshold = tl.load(thresholds + columns, mask=here, other=float("inf"))
        extra = tl.load(bonus + columns, mask=here, other=0.0)
        counts += tl.sum((scores + extra[None, :] > threshold[None, :]).to(tl.int32), 1)
    tl.atomic_add(counts_out + rows, counts, mask=rows < num_items, sem="relaxed")
