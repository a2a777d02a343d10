"""Which interactions are training, validation and test."""

from typing import Literal

import numpy as np

SplitRule = Literal["chronological", "random", "leave-one-out", "date", "column"]


def held_out_by_field(rank: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """The field's rule (MMRec): of a user's interactions in their order the last two are valid and test below ten, else
    the last two tenths. Users with fewer than three interactions are training alone. int8 [E]."""
    held_out = np.where(degree < 10, 1, degree // 10)
    return np.where(degree < 3, 0, _from_end(rank, degree, held_out)).astype(np.int8)


def leave_one_out(rank: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """The last is test, the one before it valid; users with fewer than three interactions are training alone."""
    return np.where(degree < 3, 0, _from_end(rank, degree, np.ones_like(degree))).astype(np.int8)


def by_date(timestamps: np.ndarray, valid_from: int, test_from: int) -> np.ndarray:
    return ((timestamps >= valid_from).astype(np.int8) + (timestamps >= test_from)).astype(np.int8)


def _from_end(rank: np.ndarray, degree: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    from_end = degree - 1 - rank
    return np.where(from_end < held_out, 2, np.where(from_end < 2 * held_out, 1, 0))


def ranks_within_users(users: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of each interaction among its user's, in the order of `key` and then of the file; their number)."""
    order = np.lexsort((np.arange(len(users)), key, users))
    degree = np.bincount(users)[users]
    ordered = users[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.empty(len(users), dtype=np.int64)
    rank[order] = np.arange(len(users)) - np.repeat(starts, np.diff(np.r_[starts, len(users)]))
    return rank, degree


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Mask [E] of the interactions that are left when users and items with fewer than k are taken out, again and
    again."""
    kept = np.ones(len(users), dtype=bool)
    while True:
        of_users, of_items = (np.bincount(ids[kept], minlength=int(ids.max(initial=-1)) + 1) for ids in (users, items))
        left = kept & (of_users[users] >= k) & (of_items[items] >= k)
        if left.sum() == kept.sum():
            return kept
        kept = left
