"""Tiled passes of `uatmc_kernels.bpr_all_items`: loss, loss with gradients, second order.

With x_bj = s_bj - positive_score_b, weights w_b and a directional change t_bj of x:
    loss_b = sum_j softplus(x_bj)                               dloss/dx = A = w sigma(x)
    second order: the gradient of sum_bj w_b sigma(x_bj) t_bj   D = w sigma(x) sigma(-x) t
"""

import torch

from uatmc_kernels._dispatch import ScorePass, accumulator_dtype
from uatmc_kernels.tiled._tiles import Tile, relative_score_tiles

# Halvings of a tile's columns before a logarithm is taken: of four factors, each at least 1/2.
_HALVINGS = 2


def _loss_and_sigma(loss_B: torch.Tensor, tile: Tile) -> torch.Tensor:
    """Adds the tile's softplus(x) to loss_B and returns sigma(x) [B, T]; both buffers of the tile are used up.

    softplus(x) = max(x, 0) - log(1 - m) with m = min(sigma, 1 - sigma): sigma, which the gradients need, is the
    only exponential. Four factors 1 - m share one logarithm, as 1 - (a + b - ab), which keeps the tiny m of
    items far below the positive: those are most of a catalog, and 1 - m alone would round them off.
    """
    sigma_BT = torch.sigmoid(tile.scores_BT, out=tile.scratch_BT)
    rest_BT = tile.scores_BT.clamp_(min=0)
    loss_B += rest_BT.sum(1)
    torch.minimum(torch.sub(1, sigma_BT, out=rest_BT), sigma_BT, out=rest_BT)
    one, width = rest_BT.new_ones(()), rest_BT.shape[1]
    for _ in range(_HALVINGS):
        if width % 2:
            loss_B -= torch.log1p(-rest_BT.select(1, width - 1))
        width //= 2
        half_BT = rest_BT.narrow(1, 0, width)
        torch.lerp(half_BT, one, rest_BT.narrow(1, width, width), out=half_BT)  # a + b (1 - a)
    loss_B -= rest_BT[:, :width].neg_().log1p_().sum(1)
    return sigma_BT


def bpr_loss(scores: ScorePass) -> torch.Tensor:
    """loss_B alone: one product a tile."""
    dtype = accumulator_dtype(scores.users_BK.dtype)
    loss_B = scores.users_BK.new_zeros(len(scores.users_BK), dtype=torch.float64)
    for tile in relative_score_tiles(scores):
        _loss_and_sigma(loss_B, tile)
    return loss_B.to(dtype)


def bpr_loss_and_gradients(scores: ScorePass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss_B, d_users_BK, d_items_NK, d_positive_B) for weights of one, in one sweep."""
    dtype = accumulator_dtype(scores.users_BK.dtype)
    users_BK = scores.users_BK.to(dtype)
    loss_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    sigma_B = torch.zeros_like(loss_B)
    d_users_BK, partial_BK = torch.zeros_like(users_BK), torch.empty_like(users_BK)
    d_items_NK = users_BK.new_empty(scores.items_NK.shape)
    for tile in relative_score_tiles(scores):
        sigma_BT = _loss_and_sigma(loss_B, tile)
        sigma_B += sigma_BT.sum(1)
        torch.mm(sigma_BT.T, users_BK, out=d_items_NK[tile.start : tile.stop])
        # A product of its own: added to in place, small batches would be summed one item after the other.
        d_users_BK += torch.mm(sigma_BT, tile.items_TK, out=partial_BK)
    return loss_B.to(dtype), d_users_BK, d_items_NK, -sigma_B.to(dtype)


def bpr_item_gradients(scores: ScorePass, weights_B: torch.Tensor) -> torch.Tensor:
    """d_items_NK for these weights of the users. A weight scales a row of sigma: here, the users' rows once."""
    dtype = accumulator_dtype(scores.users_BK.dtype)
    weighted_BK = scores.users_BK.to(dtype) * weights_B.to(dtype)[:, None]
    d_items_NK = weighted_BK.new_empty(scores.items_NK.shape)
    for tile in relative_score_tiles(scores):
        torch.mm(tile.scores_BT.sigmoid_().T, weighted_BK, out=d_items_NK[tile.start : tile.stop])
    return d_items_NK


def bpr_second_order(
    weights_B: torch.Tensor, scores: ScorePass, tangents: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of <tangents, first-order gradients> for (weights, users, items, positive scores).

    `tangents` of (users, items, positive scores); one that is None is zero.
    """
    tangent_users, tangent_items, tangent_positive = tangents
    dtype = accumulator_dtype(scores.users_BK.dtype)
    users_BK, weights_B = scores.users_BK.to(dtype), weights_B.to(dtype)
    tangent_users = None if tangent_users is None else tangent_users.to(dtype)
    minus_tangent_B1 = (
        users_BK.new_zeros(len(users_BK), 1) if tangent_positive is None else -tangent_positive.to(dtype)[:, None]
    )
    d_weights_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    d_sigma_B = torch.zeros_like(d_weights_B)
    d_users_BK = torch.zeros_like(users_BK)
    d_items_NK = users_BK.new_zeros(scores.items_NK.shape)
    for tile in relative_score_tiles(scores):
        rows = slice(tile.start, tile.stop)
        change_BT = tile.scratch_BT.copy_(minus_tangent_B1.expand_as(tile.scratch_BT))
        if tangent_users is not None:
            change_BT.addmm_(tangent_users, tile.items_TK.T)
        if tangent_items is not None:
            tangent_TK = tangent_items[rows].to(dtype)
            change_BT.addmm_(users_BK, tangent_TK.T)
        sigma_BT = tile.scores_BT.sigmoid_()
        change_BT *= sigma_BT
        d_weights_B += change_BT.sum(1)
        weighted_sigma_BT = sigma_BT * weights_B[:, None]
        if tangent_items is not None:
            d_users_BK += weighted_sigma_BT @ tangent_TK
        if tangent_users is not None:
            d_items_NK[rows].addmm_(weighted_sigma_BT.T, tangent_users)
        second_BT = change_BT.mul_(sigma_BT.neg_().add_(1)).mul_(weights_B[:, None])
        d_sigma_B += second_BT.sum(1)
        d_users_BK += second_BT @ tile.items_TK
        d_items_NK[rows].addmm_(second_BT.T, users_BK)
    return d_weights_B.to(dtype), d_users_BK, d_items_NK, -d_sigma_B.to(dtype)
