"""Triton passes of `uatmc_kernels.bpr_all_items`: deterministic sweeps by users and by items, and the atomic variant.

The loss and what belongs to users come from a sweep in which users own tiles, the items' gradients from one in
which items do. Scores are computed twice, which costs less than writing any of them (docs/kernels.md).
"""

from typing import Any

import torch
import triton

from uatmc_kernels._dispatch import ScorePass
from uatmc_kernels.triton._launches import as_rows, entries, split, vector
from uatmc_kernels.triton._math import FLUSH
from uatmc_kernels.triton._variants import VARIANTS, prepare


def bpr_loss(scores: ScorePass) -> torch.Tensor:
    loss_B, _, _ = _sweep("loss", scores)
    return loss_B


def bpr_loss_and_gradients(
    scores: ScorePass,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss_B, d_users_BK, d_items_NK, d_positive_B) for weights of one, in two sweeps."""
    loss_B, sigma_B, d_users_BK = _sweep("loss_and_user_gradients", scores)
    return loss_B, d_users_BK, bpr_item_gradients(scores, None), sigma_B.neg_()


def bpr_item_gradients(scores: ScorePass, weights_B: torch.Tensor | None) -> torch.Tensor:
    """d_items_NK for these weights of the users."""
    return _sweep("item_gradients", scores, weights_B)[2]


def bpr_loss_and_gradients_atomic(
    scores: ScorePass,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same results from one sweep; sums over items are added by atomics, in an order that changes."""
    users, items = as_rows(scores.users_BK), as_rows(scores.items_NK)
    (num_users, width), num_items = users.shape, len(items)
    loss_B, sigma_B = (users.new_zeros(num_users, dtype=torch.float32) for _ in range(2))
    d_users_BK = users.new_zeros(num_users, width, dtype=torch.float32)
    d_items_NK = users.new_zeros(num_items, width, dtype=torch.float32)
    if num_users and num_items:
        prepared = prepare("atomic", {"K": width}, users)
        prepared.kernel[triton.cdiv(num_items, prepared.blocks["BO"]), 1, triton.cdiv(width, prepared.blocks["KO"])](
            users,
            items,
            vector(scores.positive_scores_B),
            vector(scores.skip_B, torch.int32),
            loss_out=loss_B,
            sigma_out=sigma_B,
            d_users_out=d_users_BK,
            d_items_out=d_items_NK,
            num_users=num_users,
            num_items=num_items,
            **entries(scores.seen, False, prepared.blocks["BO"], prepared.blocks["BS"], num_items, num_users),
            USER_STRIDE=users.stride(0),
            ITEM_STRIDE=items.stride(0),
            K=width,
            **prepared.constants,
        )
    return loss_B, d_users_BK, d_items_NK, sigma_B.neg_()


def bpr_second_order(
    weights_B: torch.Tensor, scores: ScorePass, tangents: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of <tangents, first-order gradients> for (weights, users, items, positive scores)."""
    tangent_users, tangent_items, tangent_positive = tangents
    d_weights_B, d_sigma_B, d_users_BK = _second_order(
        "second_order_of_users", scores, weights_B, tangent_users, tangent_items, tangent_positive
    )
    _, _, d_items_NK = _second_order(
        "second_order_of_items", scores, weights_B, tangent_items, tangent_users, tangent_positive
    )
    return d_weights_B, d_users_BK, d_items_NK, d_sigma_B.neg_()


class _Grid:
    """Owners, stream and partial sums of a sweep."""

    def __init__(self, name: str, scores: ScorePass) -> None:
        flags = VARIANTS[name].flags
        self.owner_is_user = flags["OWNER_IS_USER"]
        users, items = as_rows(scores.users_BK), as_rows(scores.items_NK)
        self.owners, self.stream = (users, items) if self.owner_is_user else (items, users)
        self.num_owners, self.width = self.owners.shape
        self.num_stream = len(self.stream)
        self.prepared = prepare(name, {"K": self.width}, users)
        self.blocks = self.prepared.blocks
        self.with_gradient = flags.get("WITH_GRADIENT", True)
        self.is_empty = not (self.num_owners and self.num_stream)
        if not self.is_empty:
            self.num_tiles = triton.cdiv(self.num_owners, self.blocks["BO"])
            self.num_slices = triton.cdiv(self.width, self.blocks["KO"]) if self.with_gradient else 1
            self.splits, self.per_split = split(
                self.num_stream, self.blocks["BS"], self.num_tiles * self.num_slices, users
            )

    def empty_result(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        make = lambda *shape: self.owners.new_zeros(*shape, dtype=torch.float32)  # noqa: E731
        return make(self.num_owners), make(self.num_owners), make(self.num_owners, self.width)

    def run(self, scores: ScorePass, names: tuple[str, str], arguments: dict[str, Any]) -> Any:
        """Launches, and sums each output over the splits in a fixed order."""
        accumulate = self.per_split > FLUSH.value
        make = self.owners.new_zeros if accumulate else self.owners.new_empty
        shape = (self.splits, self.num_owners)
        sums = [make(shape, dtype=torch.float32) if self.owner_is_user else None for _ in names]
        gradient = make((*shape, self.width), dtype=torch.float32) if self.with_gradient else None
        outputs = {**dict(zip(names, sums, strict=True)), "gradient_out": gradient}
        self.prepared.kernel[self.num_tiles, self.splits, self.num_slices](
            owners=self.owners,
            stream=self.stream,
            positive=vector(scores.positive_scores_B),
            skip=vector(scores.skip_B, torch.int32),
            num_owners=self.num_owners,
            num_stream=self.num_stream,
            per_split=self.per_split,
            **outputs,
            **entries(
                scores.seen, self.owner_is_user, self.blocks["BO"], self.blocks["BS"], self.num_owners, self.num_stream
            ),
            **arguments,
            OWNER_STRIDE=self.owners.stride(0),
            STREAM_STRIDE=self.stream.stride(0),
            K=self.width,
            **{**self.prepared.constants, "ACCUMULATE": accumulate},
        )
        return [None if part is None else part[0] if len(part) == 1 else part.sum(0) for part in (*sums, gradient)]


def _sweep(name: str, scores: ScorePass, weights_B: torch.Tensor | None = None) -> Any:
    grid = _Grid(name, scores)
    if grid.is_empty:
        return grid.empty_result()
    weights = None if weights_B is None else vector(weights_B)
    return grid.run(scores, ("loss_out", "sigma_out"), {"weights": weights})


def _second_order(
    name: str,
    scores: ScorePass,
    weights_B: torch.Tensor,
    owner_tangent: torch.Tensor | None,
    stream_tangent: torch.Tensor | None,
    tangent_positive: torch.Tensor | None,
) -> Any:
    grid = _Grid(name, scores)
    if grid.is_empty:
        return grid.empty_result()
    dtype = grid.owners.dtype
    rows = [None if side is None else as_rows(side.to(dtype)) for side in (owner_tangent, stream_tangent)]
    if tangent_positive is None:
        tangent_positive = torch.zeros_like(weights_B)
    arguments = {
        "owner_tangent": rows[0],
        "stream_tangent": rows[1],
        "weights": vector(weights_B),
        "tangent_positive": vector(tangent_positive),
        "OWNER_TANGENT_STRIDE": 0 if rows[0] is None else rows[0].stride(0),
        "STREAM_TANGENT_STRIDE": 0 if rows[1] is None else rows[1].stride(0),
    }
    return grid.run(scores, ("d_weights_out", "d_sigma_out"), arguments)
