"""What a perturbation of a feature row may do: one definition for training, attack and certificate."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from uatmc_dist.data.catalog import MODALITIES

Norm = Literal["l2", "linf"]
Definition = Literal["training", "paper"]
Deltas = tuple[torch.Tensor, torch.Tensor]
"""Perturbations of the visual and the textual rows."""


class Budget(Protocol):
    """Of rows [n, d] and perturbations of them, row by row."""

    @property
    def replaces(self) -> bool:
        """Whether the row that comes is bounded, instead of how far it may lie from the one that was there."""
        ...

    def scaled(self, weight: float) -> "Budget":
        """The same with `weight` times the epsilon."""
        ...

    def most(self, directions_nd: torch.Tensor) -> torch.Tensor:
        """The most that perturbing a UNIT row can add to <row, direction>, or, where rows are replaced, that what comes
        can add to what is left of it, [n]. `ascend` from zero with step 1 attains it. Differentiable."""
        ...

    def gain(self, directions_Ad: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        """The most that perturbing each row can add to <row, direction>, [A, n]."""
        ...

    def project(self, delta_nd: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        """The nearest perturbation that is allowed."""
        ...

    def ascend(
        self, delta_nd: torch.Tensor, gradient_nd: torch.Tensor, rows_nd: torch.Tensor, step: float | torch.Tensor
    ) -> torch.Tensor:
        """One step along the normalised gradient; step 1 goes as far as is allowed. `step` may be [n, 1]. A row with a
        zero gradient stays where it is."""
        ...


@dataclass(frozen=True)
class Ball:
    """|delta_j| <= epsilon ||row_j||_2, measured in `norm`."""

    epsilon: float
    norm: Norm
    replaces: ClassVar[bool] = False

    @classmethod
    def of_attack(cls, epsilon: float, norm: Norm, definition: Definition, dim: int) -> "Ball":
        """The ball of an attack on rows of width `dim`.

        training: epsilon means what it means in training, a radius of epsilon ||row||_2 in either norm.
        paper: the published box, |delta_i| <= epsilon ||row||_2; as an L2 ball the smallest one around that box, whose
        radius is larger by sqrt(dim).
        """
        return cls(epsilon * math.sqrt(dim) if (norm, definition) == ("l2", "paper") else epsilon, norm)

    def scaled(self, weight: float) -> "Ball":
        return Ball(weight * self.epsilon, self.norm)

    def radius(self, rows_nd: torch.Tensor) -> torch.Tensor:
        return self.epsilon * rows_nd.norm(dim=1, keepdim=True)

    def most(self, directions_nd: torch.Tensor) -> torch.Tensor:
        """Epsilon times the dual norm (L1 for linf)."""
        return self.epsilon * directions_nd.norm(p=1 if self.norm == "linf" else 2, dim=1)

    def gain(self, directions_Ad: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        return self.most(directions_Ad)[:, None] * rows_nd.norm(dim=1)

    def project(self, delta_nd: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        radius = self.radius(rows_nd)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(delta_nd, -radius), radius)
        size = delta_nd.norm(dim=1, keepdim=True)
        return delta_nd * torch.where(size > radius, radius / size, torch.ones_like(size))

    def ascend(
        self, delta_nd: torch.Tensor, gradient_nd: torch.Tensor, rows_nd: torch.Tensor, step: float | torch.Tensor
    ) -> torch.Tensor:
        """A step of length step x radius (its sign for linf), then back into the ball."""
        direction_nd = gradient_nd.sign() if self.norm == "linf" else unit(gradient_nd)
        return self.project(delta_nd + step * self.radius(rows_nd) * direction_nd, rows_nd)


@dataclass(frozen=True)
class AnyContent:
    """The row may become any row of length 1: whatever photo or text, through whatever encoder (docs/algorithm.md,
    section 7.1). With a share below 1 it goes so much of the way towards any: to (1 - share) row + share u, |u| = 1."""

    share: float = 1.0
    replaces: ClassVar[bool] = True

    def scaled(self, weight: float) -> "AnyContent":
        return AnyContent(weight * self.share)

    def most(self, directions_nd: torch.Tensor) -> torch.Tensor:
        return self.share * directions_nd.norm(dim=1)

    def gain(self, directions_Ad: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        return self.most(directions_Ad)[:, None] - self.share * (directions_Ad @ rows_nd.T)

    def project(self, delta_nd: torch.Tensor, rows_nd: torch.Tensor) -> torch.Tensor:
        """Where nothing is left of u there is no nearest point, and the row stays unperturbed."""
        towards_nd = rows_nd + delta_nd / self.share
        is_there = (towards_nd != 0).any(dim=1, keepdim=True)
        return torch.where(is_there, self.share * (unit(towards_nd) - rows_nd), 0.0)

    def ascend(
        self, delta_nd: torch.Tensor, gradient_nd: torch.Tensor, rows_nd: torch.Tensor, step: float | torch.Tensor
    ) -> torch.Tensor:
        """u becomes the mean of itself and of the furthest point along the gradient, weighted by the step (at most 1),
        put back to length 1."""
        part = step.to(rows_nd.dtype).clamp(max=1) if isinstance(step, torch.Tensor) else min(step, 1.0)
        ahead_nd = part * self.share * (unit(gradient_nd) - rows_nd) + (1 - part) * delta_nd
        stays = (gradient_nd == 0).all(dim=1, keepdim=True)
        return torch.where(stays, delta_nd, self.project(ahead_nd, rows_nd))


def unit(rows_nd: torch.Tensor) -> torch.Tensor:
    """Zero rows stay zero; squares of small numbers do not vanish."""
    largest = rows_nd.abs().amax(dim=1, keepdim=True)
    rows_nd = rows_nd / largest.masked_fill(largest == 0, torch.inf)
    length = rows_nd.norm(dim=1, keepdim=True)
    return rows_nd / length.masked_fill(length == 0, torch.inf)


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
    """The most that perturbing both unit rows of one item can add to each user's score, or, where rows are replaced,
    that both rows' terms can come to, [A]; linear fusion (docs/algorithm.md, section 7). content_Ad: the users' content
    halves h. Differentiable."""
    return visual.most(content_Ad @ w_v) + text.most(content_Ad @ w_t)
