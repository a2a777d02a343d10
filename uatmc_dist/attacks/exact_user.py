"""The optimum for one user, in closed form (linear fusion): the budget's furthest point along W_v'h_u and W_t'h_u.

No perturbation lifts the target further for that user. With several anchors the optima of some of them are tried,
from the one that is easiest to win to the hardest that can be won.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Knowledge, Targets

_TARGETS_AT_ONCE = 16


@dataclass(frozen=True)
class ExactUser:
    num_users: int = 8
    """Anchors whose optimum is tried for each target."""
    name: str = "exact_user"
    knowledge: Knowledge = "white box"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        parts = torch.arange(len(targets)).split(_TARGETS_AT_ONCE)
        anchors_CT = torch.cat([self._anchors(targets.chosen(part), budget) for part in parts], dim=1)
        for anchor_T in anchors_CT:
            yield targets.ascend(targets.zeros(), targets.anchors.rows_of(targets.content_ad, anchor_T), budget, 1.0)

    def _anchors(self, targets: Targets, budget: Budget) -> torch.Tensor:
        """The anchors to try for each target, [tried, T], from easy to hard."""
        num_tried = min(self.num_users, targets.anchors.count)
        content_ad, shares = targets.content_ad, [targets.v_Td.new_zeros(0, len(targets))]
        for piece, excess_aT in targets.excess(targets.zeros()):
            visual_aT = budget.gain(content_ad[piece] @ targets.w_v, targets.v_Td)
            gain_aT = visual_aT + budget.gain(content_ad[piece] @ targets.w_t, targets.t_Td)
            # Share of what can be done for the user that is needed; who is won already is of no use.
            shares.append(torch.where((excess_aT < 0) & (gain_aT > 0), -excess_aT / gain_aT, torch.inf))
        share_AT = targets.anchors.gathered(torch.cat(shares))
        order_AT = share_AT.argsort(dim=0)
        last_T = (share_AT <= 1).sum(0).clamp(min=1) - 1
        positions = torch.stack([index * last_T // max(num_tried - 1, 1) for index in range(num_tried)])
        return order_AT.gather(0, positions)
