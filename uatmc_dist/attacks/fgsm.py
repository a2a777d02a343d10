"""FGSM: one sign step to the surface of the ball."""

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Targets


class FGSM:
    name = "fgsm"
    margin = 10.0

    def __call__(self, targets: Targets, epsilon: float) -> Deltas:
        budget = Budget(epsilon, "linf")
        start = torch.zeros_like(targets.v_Td), torch.zeros_like(targets.t_Td)
        gradient_v, gradient_t = targets.gradients(*start, self.margin)
        return (
            budget.ascend(start[0], gradient_v, targets.v_Td, 1.0),
            budget.ascend(start[1], gradient_t, targets.t_Td, 1.0),
        )
