"""PGD: several normalised steps of 1.25 epsilon / steps, each projected into the ball; starts at zero; margin 1."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Knowledge, Targets
from uatmc_dist.attacks.losses import Hinge


@dataclass(frozen=True)
class PGD:
    steps: int = 10
    name: str = "pgd"
    knowledge: Knowledge = "white box"
    loss: ClassVar[Hinge] = Hinge(1.0)

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        deltas = targets.zeros()
        for _ in range(self.steps):
            pull_Td = targets.evaluate(deltas, self.loss).pull_Td
            deltas = targets.ascend(deltas, pull_Td, budget, 1.25 / self.steps)
        yield deltas
