"""PGD by an attacker who knows that the defence aligns the modalities' gradients.

Climbs the loss plus the cosine of the modalities' gradients (`coordinated`: towards where both modalities pull the
same way) or minus it (`anti_aligned`: towards where they disagree, which training did not look at). As in training the
cosine's gradient replaces the pull g by g + HVP(omega) (docs/algorithm.md, section 4.1); here both terms have the same
length, so that neither drowns.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas, unit
from uatmc_dist.attacks.base import Knowledge, Targets
from uatmc_dist.attacks.losses import SoftRank
from uatmc_kernels import coordinate

_TEMPERATURE = 0.25
"""In typical reaches of the budget."""


@dataclass(frozen=True)
class Coordinated:
    steps: int
    sign: int = 1
    """1: towards aligned gradients, -1: away from them."""
    knowledge: Knowledge = "white box"

    @property
    def name(self) -> str:
        return "coordinated" if self.sign > 0 else "anti_aligned"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        loss = SoftRank(_TEMPERATURE * targets.typical_reach(budget))
        deltas = targets.zeros()
        for _ in range(self.steps):
            pull_Td = targets.evaluate(deltas, loss).pull_Td
            _, omega_Td = coordinate(pull_Td, targets.w_v, targets.w_t)
            along_Td = self.sign * unit(_hvp(targets, deltas, loss, omega_Td))
            deltas = targets.ascend(deltas, unit(pull_Td) + along_Td, budget, 1.25 / self.steps)
        yield deltas


def _hvp(targets: Targets, deltas: Deltas, loss: SoftRank, omega_Td: torch.Tensor) -> torch.Tensor:
    """Second derivative of the mean loss in the content rows, times omega."""
    product_Td = torch.zeros_like(omega_Td, dtype=torch.float64)
    content_ad = targets.content_ad
    for piece, excess_aT in targets.excess(deltas):
        weights_aT = loss.curvature(excess_aT) * (content_ad[piece] @ omega_Td.T)
        product_Td += weights_aT.T @ content_ad[piece]
    return targets.anchors.mean(product_Td).to(omega_Td.dtype)
