"""PGD: several sign steps of 1.25 epsilon / steps, each projected back into the ball; starts at zero."""

from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Targets


@dataclass(frozen=True)
class PGD:
    steps: int = 10
    margin: float = 1.0
    name = "pgd"

    def __call__(self, targets: Targets, epsilon: float) -> Deltas:
        budget = Budget(epsilon, "linf")
        delta_v, delta_t = torch.zeros_like(targets.v_Td), torch.zeros_like(targets.t_Td)
        for _ in range(self.steps):
            gradient_v, gradient_t = targets.gradients(delta_v, delta_t, self.margin)
            delta_v = budget.ascend(delta_v, gradient_v, targets.v_Td, 1.25 / self.steps)
            delta_t = budget.ascend(delta_t, gradient_t, targets.t_Td, 1.25 / self.steps)
        return delta_v, delta_t
