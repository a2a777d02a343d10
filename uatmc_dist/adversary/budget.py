"""The epsilon ball around a feature row: one definition for training and attack."""

from dataclasses import dataclass
from typing import Literal

import torch

Deltas = tuple[torch.Tensor, torch.Tensor]
"""Perturbations of the visual and the textual rows."""


@dataclass(frozen=True)
class Budget:
    """|delta_j| <= epsilon ||row_j||_2, measured in `norm`; rows [n, d]."""

    epsilon: float
    norm: Literal["l2", "linf"]

    def radius(self, rows_nd: torch.Tensor) -> torch.Tensor:
        return self.epsilon * rows_nd.norm(dim=1, keepdim=True)

    def ascend(
        self, delta_nd: torch.Tensor, gradient_nd: torch.Tensor, rows_nd: torch.Tensor, step: float
    ) -> torch.Tensor:
        """One step of length step x radius along the normalised gradient (its sign for linf), then back into
        the ball. A row with a zero gradient stays where it is."""
        radius = self.radius(rows_nd)
        if self.norm == "linf":
            moved = delta_nd + step * radius * gradient_nd.sign()
            return torch.minimum(torch.maximum(moved, -radius), radius)
        length = gradient_nd.norm(dim=1, keepdim=True)
        moved = delta_nd + step * radius * gradient_nd / length.masked_fill(length == 0, float("inf"))
        size = moved.norm(dim=1, keepdim=True)
        return moved * torch.where(size > radius, radius / size, torch.ones_like(size))
