"""The best single direction for the mean margin: for linear fusion a closed form, the same for every target.

mean_a (s_aj(delta) - threshold_a) is linear in delta, so the maximum over the ball lies along the mean of the anchors.
"""

from collections.abc import Iterable

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Knowledge, Targets


class ExactGroup:
    name = "exact_group"
    knowledge: Knowledge = "white box"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        yield targets.best_mean_direction(budget)
