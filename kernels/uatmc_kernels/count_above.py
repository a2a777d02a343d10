"""For each item, the number of users in whose reach it is."""

import torch
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import Implementation, backend, check_float, check_scores, resolve
from uatmc_kernels._op import op


@torch.no_grad()
def count_above(
    users_BK: Tensor,
    items_NK: Tensor,
    thresholds_B: Tensor,
    bonus_B: Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """counts_j = number of users b with s_bj + bonus_b > thresholds_b.

    With a user's k-th best score as threshold and no bonus these are an item's hits; with the most that a
    perturbation can add as bonus, a certified bound on them (docs/algorithm.md, section 7). Scores and the
    comparison are float32 (float64 for float64 inputs); tiled takes the bonus off the threshold, so that a score that
    meets it but for rounding may count or not.

    `bonus_B` may be [B, P], P of them for each user: tiled makes their counts of the same scores, in less time than
    a second product takes; Triton goes over the scores P times.

    Returns counts_N int64, or [P, N]. Raises ValueError, naming the argument, for what does not fit.
    """
    check_scores(users_BK, items_NK)
    check_float("thresholds_B", thresholds_B, (len(users_BK),), users_BK)
    check_float("bonus_B", bonus_B, (len(users_BK), *(None,) * (bonus_B.dim() > 1)), users_BK)
    name = resolve(implementation, users_BK)
    given = users_BK, items_NK, thresholds_B, bonus_B if bonus_B.dim() > 1 else bonus_B[:, None]
    counts_PN = reference.count_above(*given) if name == "reference" else _count(*given, name)
    return counts_PN if bonus_B.dim() > 1 else counts_PN[0]


@op("count_above")
def _count(users: Tensor, items: Tensor, thresholds: Tensor, boni: Tensor, implementation: str) -> Tensor:
    return backend(implementation).count_above(users, items, thresholds, boni)


@_count.register_fake
def _(users, items, thresholds, boni, implementation):  # type: ignore[no-untyped-def]
    return users.new_empty((boni.shape[1], len(items)), dtype=torch.int64)
