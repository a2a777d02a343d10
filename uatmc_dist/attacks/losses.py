"""What promotion attacks climb: functions of the excess x = score - threshold of one user and one target.

The value is to be raised; slope and curvature are its derivatives in x. All are element by element.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


class Loss(Protocol):
    def value_and_slope(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class Hinge:
    """relu(x + margin), protocol `paper`. Users further below their threshold than the margin give no gradient."""

    margin: float

    def value_and_slope(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (excess + self.margin).clamp(min=0), (excess > -self.margin).to(excess.dtype)


@dataclass(frozen=True)
class SoftRank:
    """sigma(x / temperature): Hit@k with a soft step. No user's gradient is zero."""

    temperature: float

    def value_and_slope(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        soft = self.value(excess)
        return soft, soft * (1 - soft) / self.temperature

    def value(self, excess: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(excess / self.temperature)

    def curvature(self, excess: torch.Tensor) -> torch.Tensor:
        soft, slope = self.value_and_slope(excess)
        return slope * (1 - 2 * soft) / self.temperature


@dataclass(frozen=True)
class LogHinge:
    """-log(1 + relu(-x) / scale): a hinge whose slope fades with the distance of a user below the threshold but
    is never zero; users above it are content."""

    scale: float

    def value_and_slope(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        below = (-excess).clamp(min=0)
        return -torch.log1p(below / self.scale), below.sign() / (self.scale + below)
