"""Tiled passes of `uatmc_kernels.logsumexp_all_items`.

With p_bj = exp(s_bj - lse_b), weights w_b and a directional change t_bj of s:
    dlse/ds = w p           second order: the gradient of sum_bj w_b p_bj t_bj   D = w p (t - sum_k p_bk t_bk)
"""

from collections.abc import Iterator

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype
from uatmc_kernels.tiled._tiles import Tile, relative_score_tiles


def logsumexp(scores: ScorePass) -> torch.Tensor:
    """lse_B: one product a tile, the largest score so far and the sum relative to it."""
    dtype = accumulator_dtype(scores.users_BK.dtype)
    largest_B = scores.users_BK.new_full((len(scores.users_BK),), -torch.inf, dtype=dtype)
    sum_B = largest_B.new_zeros(len(largest_B), dtype=torch.float64)
    for tile in relative_score_tiles(scores):
        before_B, largest_B = largest_B, torch.maximum(largest_B, tile.scores_BT.amax(1))
        shift_B = largest_B.masked_fill(largest_B == -torch.inf, 0)
        sum_B *= (before_B - shift_B).exp()
        sum_B += tile.scores_BT.sub_(shift_B[:, None]).exp_().sum(1)
    return (sum_B.log() + largest_B.masked_fill(largest_B == -torch.inf, 0)).to(dtype)


def logsumexp_gradients(scores: ScorePass, weights_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(d_users_BK, d_items_NK) for these weights; `scores` are relative to lse_B."""
    dtype = accumulator_dtype(scores.users_BK.dtype)
    weights_B1 = weights_B.to(dtype)[:, None]
    weighted_BK = scores.users_BK.to(dtype) * weights_B1
    d_users_BK, partial_BK = torch.zeros_like(weighted_BK), torch.empty_like(weighted_BK)
    d_items_NK = weighted_BK.new_empty(scores.items_NK.shape)
    for tile in relative_score_tiles(scores):
        shares_BT = tile.scores_BT.exp_()
        torch.mm(shares_BT.T, weighted_BK, out=d_items_NK[tile.start : tile.stop])
        # A product of its own: added to in place, small batches would be summed one item after the other.
        d_users_BK += torch.mm(shares_BT, tile.items_TK, out=partial_BK)
    return d_users_BK.mul_(weights_B1), d_items_NK


def logsumexp_second_order(
    weights_B: torch.Tensor, scores: ScorePass, tangents: tuple[torch.Tensor | None, torch.Tensor | None]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of <tangents, first-order gradients> for (weights, users, items); `scores` are relative to lse_B.

    `tangents` of (users, items); one that is None is zero.
    """
    dtype = accumulator_dtype(scores.users_BK.dtype)
    users_BK, weights_B1 = scores.users_BK.to(dtype), weights_B.to(dtype)[:, None]
    tangent_users, tangent_items = (None if tangent is None else tangent.to(dtype) for tangent in tangents)
    mean_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    for tile, change_BT in _changes(scores, users_BK, tangent_users, tangent_items):
        mean_B += change_BT.mul_(tile.scores_BT.exp_()).sum(1)
    mean_B = mean_B.to(dtype)
    d_users_BK = torch.zeros_like(users_BK)
    d_items_NK = users_BK.new_zeros(scores.items_NK.shape)
    for tile, change_BT in _changes(scores, users_BK, tangent_users, tangent_items):
        rows = slice(tile.start, tile.stop)
        shares_BT = tile.scores_BT.exp_().mul_(weights_B1)
        if tangent_items is not None:
            d_users_BK += shares_BT @ tangent_items[rows]
        if tangent_users is not None:
            d_items_NK[rows].addmm_(shares_BT.T, tangent_users)
        second_BT = change_BT.sub_(mean_B[:, None]).mul_(shares_BT)
        d_users_BK += second_BT @ tile.items_TK
        d_items_NK[rows].addmm_(second_BT.T, users_BK)
    return mean_B, d_users_BK, d_items_NK


def _changes(
    scores: ScorePass, users_BK: torch.Tensor, tangent_users: torch.Tensor | None, tangent_items: torch.Tensor | None
) -> Iterator[tuple[Tile, torch.Tensor]]:
    """Each tile with t_bj = tangent_user_b . item_j + user_b . tangent_item_j in its second buffer."""
    for tile in relative_score_tiles(scores):
        change_BT = tile.scratch_BT.zero_()
        if tangent_users is not None:
            change_BT.addmm_(tangent_users, tile.items_TK.T)
        if tangent_items is not None:
            change_BT.addmm_(users_BK, tangent_items[tile.start : tile.stop].T)
        yield tile, change_BT
