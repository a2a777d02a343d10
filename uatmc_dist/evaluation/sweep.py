"""How a certificate goes over a model: all users, a block at a time, against the items of this rank.

U  users    N  items    n  items of this rank, all of them where there is one    B  users of a block    P  bounds
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from uatmc_dist.evaluation.exact_topk import ExactTopk
from uatmc_dist.evaluation.kept import KeptSweep
from uatmc_dist.evaluation.ranking import Progress, UserRows
from uatmc_dist.evaluation.scenes import best_scores
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.models.projectors import ContentModel
from uatmc_dist.parallel.item_parallel import ItemBlock, gather_rows

_USERS_AT_ONCE = 1 << 13

Count = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""users_BK and the scores that they have to reach, float64 -> how many of them could come to have each item, [p, n]."""


class Pass(NamedTuple):
    """One sweep over the users, which gives several bounds."""

    bounds: int
    counter: Callable[[], Count]
    """Asked for when its turn comes, as it holds a float64 copy of the items. Collective."""


@dataclass(frozen=True)
class Swept:
    """Users whoever has them, and this rank's items with their projected rows; all of it on one device."""

    num_users: int
    block: ItemBlock
    k: int
    user_rows: UserRows
    """Collective."""
    items_nK: torch.Tensor
    v_nd: torch.Tensor
    t_nd: torch.Tensor
    dense: ContentModel

    @classmethod
    def whole(cls, model: LinearModel, k: int) -> "Swept":
        assert model.dense is not None
        users_UK, items_NK = model.users_UK, model.items()
        block = ItemBlock(len(items_NK), 0, 1)
        rows = items_NK, model.v_Nd, model.t_Nd
        return cls(len(users_UK), block, k, lambda ids_B: users_UK[ids_B], *rows, model.dense)

    def sweep(
        self,
        passes: Sequence[Pass],
        kept: KeptSweep | None = None,
        progress: Progress = lambda done, total: None,
    ) -> np.ndarray:
        """Shares of users [P, N], of what the passes count. First each user's bar is found. `progress` counts blocks of
        users. Collective."""
        kept = kept or KeptSweep(None)
        starts = range(0, self.num_users, _USERS_AT_ONCE)
        blocks = [range(start, min(start + _USERS_AT_ONCE, self.num_users)) for start in starts]
        total = len(blocks) * (1 + len(passes))
        bounds = [one.bounds for one in passes]
        bars_U = torch.zeros(self.num_users, dtype=torch.float64)
        counts_Pn = torch.zeros(sum(bounds), len(self.items_nK), dtype=torch.int64)
        step, found = kept.load() or (0, {})
        for name, values in found.items():
            {"bars": bars_U, "counts": counts_Pn}[name].copy_(torch.from_numpy(values))
        progress(step, total)

        def finished(step: int) -> None:
            kept.save(step, bars=bars_U.numpy(), counts=counts_Pn.numpy())
            progress(step, total)

        best_here = ExactTopk(self.items_nK)
        for done, users in enumerate(blocks[step:], start=step + 1):
            bars_U[users.start : users.stop] = self._bars(best_here, users)
            finished(done)
        del best_here  # like each count, it may hold a copy of the items: there is one at a time
        for number, (one, counts_pn) in enumerate(zip(passes, counts_Pn.split(bounds), strict=True), start=1):
            first = max(step - number * len(blocks), 0)
            if first >= len(blocks):
                continue
            count = one.counter()
            for done, users in enumerate(blocks[first:], start=number * len(blocks) + first + 1):
                users_BK = self.user_rows(torch.arange(users.start, users.stop)).double()
                counts_pn += count(users_BK, bars_U[users.start : users.stop].to(users_BK.device)).cpu()
                finished(done)
            del count
        shares_nP = counts_Pn.T.double() / self.num_users
        return gather_rows(shares_nP, self.block.sizes).T.numpy()

    def _bars(self, best_here: ExactTopk, users: range) -> torch.Tensor:
        """What a score of these users has to reach, [B] float64: a score that rounds to the bar in float32 may be below
        it in float64, so the bar is lowered by one step. Who has the item in the top k already keeps it: the clean
        score is at least the bar."""
        best_B = torch.cat([best_Bk[:, -1] for best_Bk in best_scores(best_here, self.user_rows, users, self.k)])
        return torch.nextafter(best_B, torch.full_like(best_B, -torch.inf)).double()
