"""How a certificate goes over a model: all users, a block at a time, against the items of this rank.

U  users    N  items    n  items of this rank, all of them where there is one    B  users of a block
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from uatmc_dist.evaluation.scenes import Bars
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.models.projectors import ContentModel
from uatmc_dist.parallel.item_parallel import ItemBlock, gather_rows

_USERS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Swept:
    """Users whoever has them, and this rank's items with their projected rows."""

    num_users: int
    block: ItemBlock
    users: Callable[[slice], torch.Tensor]
    """[B, K]. Collective."""
    thresholds_U: torch.Tensor
    """What a score has to reach, float64."""
    items_nK: torch.Tensor
    v_nd: torch.Tensor
    t_nd: torch.Tensor
    dense: ContentModel

    @classmethod
    def whole(cls, model: LinearModel, bars: Bars, k: int) -> "Swept":
        assert model.dense is not None
        users_UK, best_U = model.users_UK, bars.at(k)[0]
        block = ItemBlock(len(bars.items_nK), 0, 1)
        rows = bars.items_nK, model.v_Nd, model.t_Nd
        return cls(len(users_UK), block, lambda chosen: users_UK[chosen], lowered(best_U), *rows, model.dense)

    def sweep(self, count: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> np.ndarray:
        """Shares of users [N], of counts [n] that `count(users_BK, thresholds_B)` gives. Collective."""
        counts_n = torch.zeros(len(self.items_nK), dtype=torch.int64)
        for start in range(0, self.num_users, _USERS_AT_ONCE):
            chosen = slice(start, min(start + _USERS_AT_ONCE, self.num_users))
            counts_n += count(self.users(chosen).double(), self.thresholds_U[chosen])
        shares_n1 = counts_n.double().div(self.num_users)[:, None]
        return gather_rows(shares_n1, self.block.sizes).squeeze(1).numpy()


def lowered(best_U: torch.Tensor) -> torch.Tensor:
    """A score that rounds to the bar in float32 may be below it in float64, so the bar is lowered by one step. Who has
    the item in the top k already keeps it: the clean score is at least the bar."""
    return torch.nextafter(best_U, torch.full_like(best_U, -torch.inf)).double()
