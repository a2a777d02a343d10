"""Tiled passes of `uatmc_kernels.bpr_all_items`: loss, loss with gradients, second order.

With x_bj = s_bj - positive_score_b, weights w_b and a directional change t_bj of x:
    loss_b = sum_j softplus(x_bj)                               dloss/dx = A = w sigma(x)
    second order: the gradient of sum_bj w_b sigma(x_bj) t_bj   D = w sigma(x) sigma(-x) t
"""

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import relative_score_tiles


def _add_softplus(loss_B: torch.Tensor, scores_BT: torch.Tensor, scratch_BT: torch.Tensor) -> None:
    # The functional form has no `out`; beyond the threshold softplus(x) and x agree to 2e-22.
    torch.ops.aten.softplus.out(scores_BT, 1.0, 50.0, out=scratch_BT)
    loss_B += scratch_BT.sum(1)


def bpr_loss(users_BK, items_NK, positive_scores_B, rows_E, columns_E) -> torch.Tensor:
    """loss_B alone: one product a tile."""
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    loss_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    for tile in relative_score_tiles(users_BK, items_NK, positive_scores_B, rows_E, columns_E):
        _add_softplus(loss_B, tile.scores_BT, tile.scratch_BT)
    return loss_B.to(dtype)


def bpr_loss_and_gradients(
    users_BK, items_NK, positive_scores_B, rows_E, columns_E, *, weights_B: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss_B, d_users_BK, d_items_NK, d_positive_B) in one sweep; weights of one where none are given."""
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK = users_BK.to(dtype)
    # The weight of a user scales a row of A: it can wait for the user's own sums, not for the items'.
    weighted_BK = users_BK if weights_B is None else users_BK * weights_B.to(dtype)[:, None]
    loss_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    sigma_B = torch.zeros_like(loss_B)
    d_users_BK = torch.zeros_like(users_BK)
    d_items_NK = users_BK.new_empty(items_NK.shape)
    for tile in relative_score_tiles(users_BK, items_NK, positive_scores_B, rows_E, columns_E):
        _add_softplus(loss_B, tile.scores_BT, tile.scratch_BT)
        sigma_BT = tile.scores_BT.sigmoid_()
        sigma_B += sigma_BT.sum(1)
        torch.mm(sigma_BT.T, weighted_BK, out=d_items_NK[tile.start : tile.stop])
        d_users_BK.addmm_(sigma_BT, tile.items_TK)
    d_positive_B = -sigma_B.to(dtype)
    if weights_B is not None:
        d_users_BK *= weights_B.to(dtype)[:, None]
        d_positive_B *= weights_B.to(dtype)
    return loss_B.to(dtype), d_users_BK, d_items_NK, d_positive_B


def bpr_second_order(
    weights_B, users_BK, items_NK, positive_scores_B, rows_E, columns_E, *, tangents
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of <tangents, first-order gradients> for (weights, users, items, positive scores).

    `tangents` of (users, items, positive scores); one that is None is zero.
    """
    tangent_users, tangent_items, tangent_positive = tangents
    dtype = accumulator_dtype(users_BK.dtype)
    users_BK, weights_B = users_BK.to(dtype), weights_B.to(dtype)
    tangent_users = None if tangent_users is None else tangent_users.to(dtype)
    minus_tangent_B1 = (
        users_BK.new_zeros(len(users_BK), 1) if tangent_positive is None else -tangent_positive.to(dtype)[:, None]
    )
    d_weights_B = users_BK.new_zeros(len(users_BK), dtype=torch.float64)
    d_sigma_B = torch.zeros_like(d_weights_B)
    d_users_BK = torch.zeros_like(users_BK)
    d_items_NK = users_BK.new_zeros(items_NK.shape)
    for tile in relative_score_tiles(users_BK, items_NK, positive_scores_B, rows_E, columns_E):
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
            d_users_BK.addmm_(weighted_sigma_BT, tangent_TK)
        if tangent_users is not None:
            d_items_NK[rows].addmm_(weighted_sigma_BT.T, tangent_users)
        second_BT = change_BT.mul_(sigma_BT.neg_().add_(1)).mul_(weights_B[:, None])
        d_sigma_B += second_BT.sum(1)
        d_users_BK.addmm_(second_BT, tile.items_TK)
        d_items_NK[rows].addmm_(second_BT.T, users_BK)
    return d_weights_B.to(dtype), d_users_BK, d_items_NK, -d_sigma_B.to(dtype)
