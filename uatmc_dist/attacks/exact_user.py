"""The optimum for one user, in closed form (linear fusion): the budget's furthest point along W_v'h_u and W_t'h_u.

No perturbation lifts the target further for that user. With several anchors the optima of some of them are tried,
from the one that is easiest to win to the hardest that can be won.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas
from uatmc_dist.attacks.base import Knowledge, Targets


@dataclass(frozen=True)
class ExactUser:
    num_users: int = 8
    """Anchors whose optimum is tried for each target."""
    name: str = "exact_user"
    knowledge: Knowledge = "white box"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        num_tried = min(self.num_users, len(targets.users_AK))
        reach_A = targets.reach(budget)
        need_AT = torch.cat([-excess_AT for _, excess_AT in targets.excess(targets.zeros())])
        # Share of what can be done for the user that is needed; who is won already is of no use.
        share_AT = torch.where(need_AT > 0, need_AT / reach_A[:, None], torch.inf)
        order_AT = share_AT.argsort(dim=0)
        num_reachable_T = ((share_AT <= 1).sum(0)).clamp(min=1)
        for index in range(num_tried):
            position_T = index * (num_reachable_T - 1) // max(num_tried - 1, 1)
            user_T = order_AT.gather(0, position_T[None]).squeeze(0)
            yield targets.ascend(targets.zeros(), targets.content_Ad[user_T], budget, 1.0)
