"""Perturbations made on an undefended surrogate and replayed on the target model, which is never asked."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Attack, Knowledge, Targets, best_of


@dataclass(frozen=True)
class Transfer:
    attack: Attack
    """What is done to the surrogate."""
    name: str = "transfer"
    knowledge: Knowledge = "surrogate"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        """Proposes nothing where there is no surrogate."""
        if targets.surrogate is not None:
            yield best_of(targets.surrogate, self.attack(targets.surrogate, budget, generator))
