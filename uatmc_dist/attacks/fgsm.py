"""FGSM: one step to the surface of the ball (its corner for L-infinity); margin 10."""

from collections.abc import Iterable

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Knowledge, Targets
from uatmc_dist.attacks.losses import Hinge


class FGSM:
    name = "fgsm"
    knowledge: Knowledge = "white box"
    loss = Hinge(10.0)

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        start = targets.zeros()
        yield targets.ascend(start, targets.evaluate(start, self.loss).pull_Td, budget, 1.0)
