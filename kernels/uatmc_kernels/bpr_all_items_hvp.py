"""Hessian-vector product of the all-items BPR loss in the content columns of the items."""

import torch

from uatmc_kernels import reference, tiled
from uatmc_kernels._dispatch import (
    Implementation,
    Seen,
    check_float,
    check_index,
    check_scores,
    excluded_entries,
    resolve,
)


def bpr_all_items_hvp(
    users_BK: torch.Tensor,
    items_NK: torch.Tensor,
    positive_scores_B: torch.Tensor,
    skip_B: torch.Tensor,
    tangent_items_Nd: torch.Tensor,
    tangent_positive_B: torch.Tensor,
    columns: slice,
    *,
    seen: Seen | None = None,
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The HVP pass of docs/algorithm.md, section 4.1, for the unweighted sum over users of `bpr_all_items`.

    columns              slice of the K columns that hold the content half (h_b of a user); width d
    tangent_items_Nd     direction omega, one row an item of this block
    tangent_positive_B   h_b . omega of each user's positive, which may live in another block

    Returns (hvp_Nd, r_B): hvp_j = sum_b dA_bj h_b and r_b = sum_j dA_bj with
    dA_bj = sigma(x) sigma(-x) (h_b . omega_j - tangent_positive_b). The positive's own share,
    -r_b h_b at item i_b, is the caller's to scatter, since r_b has to be summed over blocks first.
    Raises ValueError, naming the argument, for shapes, dtypes or devices that do not fit.
    """
    num_users, num_items, width = check_scores(users_BK, items_NK)
    check_float("positive_scores_B", positive_scores_B, (num_users,), users_BK)
    check_index("skip_B", skip_B, (num_users,), users_BK)
    content_width = len(range(*columns.indices(width)))
    check_float("tangent_items_Nd", tangent_items_Nd, (num_items, content_width), users_BK)
    check_float("tangent_positive_B", tangent_positive_B, (num_users,), users_BK)
    rows_E, columns_E = excluded_entries(skip_B, seen, num_users, num_items, users_BK.device)
    run = reference.bpr_all_items_hvp if resolve(implementation) == "reference" else tiled.bpr_all_items_hvp
    with torch.no_grad():
        return run(
            users_BK, items_NK, positive_scores_B, rows_E, columns_E, tangent_items_Nd, tangent_positive_B, columns
        )
