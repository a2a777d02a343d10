"""The epsilon ball around a feature row: one definition for training and attack."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from uatmc_dist.data.catalog import MODALITIES

Norm = Literal["l2", "linf"]
Definition = Literal["training", "paper"]
Deltas = tuple[torch.Tensor, torch.Tensor]
"""Perturbations of the visual and the textual rows."""


@dataclass(frozen=True)
class Budget:
    """|delta_j| <= epsilon ||row_j||_2, measured in `norm`; rows [n, d]."""

    epsilon: float
    norm: Norm

    @classmethod
    def of_attack(cls, epsilon: float, norm: Norm, definition: Definition, dim: int) -> "Budget":
        """The ball of an attack on rows of width `dim`.

        training: epsilon means what it means in training, a radius of epsilon ||row||_2 in either norm.
        paper: the published box, |delta_i| <= epsilon ||row||_2; as an L2 ball the smallest one around that box, whose
        radius is larger by sqrt(dim).
        """
        return cls(epsilon * math.sqrt(dim) if (norm, definition) == ("l2", "paper") else epsilon, norm)

    def radius(self, rows_nd: torch.Tensor) -> torch.Tensor:
        return self.epsilon * rows_nd.norm(dim=1, keepdim=True)

    def most(self, directions_nd: torch.Tensor) -> torch.Tensor:
        """The most that a perturbation of a UNIT row can add to <row, direction>, [n]: epsilon times the dual norm
        (L1 for linf). `ascend` from zero with step 1 attains it. Differentiable."""
        return self.epsilon * directions_nd.norm(p=1 if self.norm == "linf" else 2, dim=1)

    def project(self, delta_nd: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        """The nearest point of the ball."""
        radius = self.radius(rows_nd)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(delta_nd, -radius), radius)
        size = delta_nd.norm(dim=1, keepdim=True)
        return delta_nd * torch.where(size > radius, radius / size, torch.ones_like(size))

    def ascend(
        self, delta_nd: torch.Tensor, gradient_nd: torch.Tensor, rows_nd: torch.Tensor, step: float | torch.Tensor
    ) -> torch.Tensor:
        """One step of length step x radius along the normalised gradient (its sign for linf), then back into
        the ball. `step` may be [n, 1]. A row with a zero gradient stays where it is."""
        if self.norm == "linf":
            direction_nd = gradient_nd.sign()
        else:
            length = gradient_nd.norm(dim=1, keepdim=True)
            direction_nd = gradient_nd / length.masked_fill(length == 0, float("inf"))
        return self.project(delta_nd + step * self.radius(rows_nd) * direction_nd, rows_nd)


def keep_modalities(deltas: Deltas, modalities: tuple[str, ...]) -> Deltas:
    """Zero in the modalities that may not be perturbed."""
    visual, text = (
        delta if modality in modalities else torch.zeros_like(delta)
        for modality, delta in zip(MODALITIES, deltas, strict=True)
    )
    return visual, text


def worst_case_bonus(
    content_Ad: torch.Tensor, w_v: torch.Tensor, w_t: torch.Tensor, visual: Budget, text: Budget
) -> torch.Tensor:
    """The most that perturbing both unit rows of one item can add to each user's score, [A]; linear fusion
    (docs/algorithm.md, section 7). content_Ad: the users' content halves h. Differentiable."""
    return visual.most(content_Ad @ w_v) + text.most(content_Ad @ w_t)
