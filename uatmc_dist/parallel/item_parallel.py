"""Item parallelism: the only file that knows collectives for the score passes.

Rank r of R owns a contiguous block of items. The users of a batch are gathered on every rank, each rank
scores them against its own block, and only vectors of B or B x K numbers travel. Every rank's loss is a
PARTIAL of the global one: the backward of each collective sums over ranks accordingly, and each backward is
itself a collective with a backward, so that second derivatives are right too.

    B  pairs of the global batch    n  active items of this rank    K  width of an embedding    R  ranks
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from uatmc_dist.parallel.traffic import TRAFFIC
from uatmc_dist.parallel.upload import upload


def num_ranks() -> int:
    """1 where no process group was joined: evaluation of a trained model needs none."""
    return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True)
class ItemBlock:
    """The items [lo, hi) of one rank, by TorchRec's row-wise rule; the last blocks may be short or empty."""

    num_items: int
    rank: int
    world_size: int

    @property
    def size(self) -> int:
        return -(-self.num_items // self.world_size)

    @property
    def sizes(self) -> list[int]:
        """Of every rank's block."""
        blocks = (ItemBlock(self.num_items, rank, self.world_size) for rank in range(self.world_size))
        return [block.hi - block.lo for block in blocks]

    @property
    def lo(self) -> int:
        return min(self.rank * self.size, self.num_items)

    @property
    def hi(self) -> int:
        return min((self.rank + 1) * self.size, self.num_items)


@dataclass(frozen=True)
class Places:
    """Where the items of some pairs lie among a rank's active rows: on the device, and as planned on the CPU."""

    index_B: torch.Tensor
    """-1: not here."""
    mine_M: torch.Tensor
    """Pairs whose item is here."""
    index_M: torch.Tensor
    """Their active rows."""
    planned: tuple[torch.Tensor, torch.Tensor]
    """mine_M and index_M on the CPU."""


@dataclass(frozen=True)
class ActiveRows:
    """The items of this rank's block that a step touches. Planned on the CPU, where the batch is: no step waits
    for the device to learn its own shapes."""

    ids_n: torch.Tensor
    """Ascending global item ids."""
    first: int
    """How many active items the ranks before this one have."""
    _places: dict[tuple[int, torch.device], tuple[torch.Tensor, Places]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def places(self, items_B: torch.Tensor, device: torch.device) -> Places:
        """Of the items of a batch; copied to the device once, whichever pass asks first."""
        key = id(items_B), device
        if key not in self._places:
            index_B = self.index_of(items_B)
            mine_M = (index_B >= 0).nonzero().squeeze(1)
            planned = mine_M, index_B[mine_M]
            placed = Places(upload(index_B, device), *(upload(part, device) for part in planned), planned)
            self._places[key] = items_B, placed  # items_B is kept, so that its id stays its own
        return self._places[key][1]

    def index_of(self, items_B: torch.Tensor) -> torch.Tensor:
        """Position of each item among the active rows; -1 where it is not here."""
        if not len(self.ids_n):
            return torch.full_like(items_B, -1)
        position_B = torch.searchsorted(self.ids_n, items_B).clamp(max=len(self.ids_n) - 1)
        return torch.where(self.ids_n[position_B] == items_B, position_B, -1)


def share_of_batch(batch_size: int) -> int:
    """Pairs of a global batch that a rank has, the last ranks' apart."""
    return -(-batch_size // num_ranks())


def batch_slice(batch_size: int) -> slice:
    """This rank's share of a global batch; the last ranks' may be short or empty."""
    share = share_of_batch(batch_size)
    rank = dist.get_rank() if dist.is_initialized() else 0
    start = min(rank * share, batch_size)
    return slice(start, min(start + share, batch_size))


def sum_over_ranks(partial: torch.Tensor) -> torch.Tensor:
    """Sum over ranks; differentiable, to any order."""
    return partial if num_ranks() == 1 else _SumRanks.apply(partial)


def max_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The largest of all ranks, number by number; no graph."""
    if num_ranks() == 1:
        return values
    largest = values.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def logsumexp_over_ranks(local_B: torch.Tensor) -> torch.Tensor:
    """log-sum-exp of all ranks' values; -inf counts as nothing. Two vectors of B numbers travel; differentiable, to any
    order."""
    if num_ranks() == 1:
        return local_B
    largest_B = local_B.detach().clone()
    dist.all_reduce(largest_B, dist.ReduceOp.MAX)
    TRAFFIC.all_reduced(largest_B.nbytes)
    largest_B.masked_fill_(largest_B == -torch.inf, 0)
    total_B = sum_over_ranks((local_B - largest_B).exp())
    # Where no rank has an item: log(0) would be right, and its gradient NaN.
    return total_B.clamp(min=torch.finfo(total_B.dtype).tiny).log() + largest_B


@dataclass(frozen=True)
class GatheredUsers:
    """User rows on their way: what does not need them can be computed until `wait`."""

    _rows_BK: torch.Tensor
    _on_the_way: list[dist.Work]

    def wait(self) -> torch.Tensor:
        """All B rows; differentiable."""
        for work in self._on_the_way:
            work.wait()
        return self._rows_BK


def gather_users(rows_mK: torch.Tensor, batch_size: int) -> GatheredUsers:
    """Starts to gather each rank's `batch_slice` of user rows on every rank."""
    if num_ranks() == 1:
        return GatheredUsers(rows_mK, [])
    share = share_of_batch(batch_size)
    on_the_way: list[dist.Work] = []
    return GatheredUsers(_gather_padded(rows_mK, share, on_the_way)[:batch_size], on_the_way)


def gather_rows(rows_n: torch.Tensor, counts_R: list[int]) -> torch.Tensor:
    """Rows of all ranks, in rank order; rank r gives counts_R[r] of them. Differentiable."""
    if len(counts_R) == 1:
        return rows_n
    share = max(max(counts_R), 1)
    gathered = _gather_padded(rows_n, share)
    total = sum(counts_R)
    if counts_R == [min(max(total - rank * share, 0), share) for rank in range(len(counts_R))]:
        return gathered[:total]  # blocks of a table: only the last ones are short
    kept = torch.cat([torch.arange(count) + rank * share for rank, count in enumerate(counts_R)])
    return gathered.index_select(0, upload(kept, rows_n.device))


def scores_at(users_BK: torch.Tensor, rows_nK: torch.Tensor, places: Places) -> torch.Tensor:
    """This rank's share of <user b, row of its item>, at least in float32: zero where the item is not here. Sum over
    ranks for all."""
    dtype = torch.promote_types(users_BK.dtype, torch.float32)
    rows_MK = rows_nK.index_select(0, places.index_M).to(dtype)
    scores_M = (users_BK.index_select(0, places.mine_M).to(dtype) * rows_MK).sum(1)
    return scores_M.new_zeros(len(users_BK)).index_add(0, places.mine_M, scores_M)


def merge_topk(scores_Bk: torch.Tensor, ids_Bk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Best k of all ranks' best k, given global ids; ties stay ordered by item, as blocks ascend with the rank."""
    ranks, k = num_ranks(), scores_Bk.shape[1]
    if ranks == 1:
        return scores_Bk, ids_Bk
    all_scores = [torch.empty_like(scores_Bk) for _ in range(ranks)]
    all_ids = [torch.empty_like(ids_Bk) for _ in range(ranks)]
    dist.all_gather(all_scores, scores_Bk.contiguous())
    dist.all_gather(all_ids, ids_Bk.contiguous())
    scores, order = torch.cat(all_scores, dim=1).sort(dim=1, descending=True, stable=True)
    return scores[:, :k], torch.cat(all_ids, dim=1).gather(1, order[:, :k])


def _gather_padded(rows_n: torch.Tensor, share: int, on_the_way: list[dist.Work] | None = None) -> torch.Tensor:
    return _GatherRows.apply(F.pad(rows_n, (0, 0, 0, share - len(rows_n))), on_the_way)


class _SumRanks(torch.autograd.Function):
    """all-reduce; its consumers are partial losses, so its backward is an all-reduce too."""

    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        total = partial.contiguous().clone()
        dist.all_reduce(total)
        TRAFFIC.all_reduced(total.nbytes)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _SumRanks.apply(gradient)


class _GatherRows(torch.autograd.Function):
    """all-gather of equal row blocks, in rank order. With a list the result is not there before the work that is
    put into it is done."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, on_the_way: list[dist.Work] | None) -> torch.Tensor:  # type: ignore[override]
        gathered = rows.new_empty((num_ranks() * rows.shape[0], *rows.shape[1:]))
        work = dist.all_gather_into_tensor(gathered, rows.contiguous(), async_op=on_the_way is not None)
        if on_the_way is not None:
            on_the_way.append(work)
        TRAFFIC.gathered(gathered.nbytes)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _ReduceScatterRows.apply(gradient), None


class _ReduceScatterRows(torch.autograd.Function):
    """Sum over ranks, of which each keeps its own block of rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        kept = rows.new_empty((rows.shape[0] // num_ranks(), *rows.shape[1:]))
        dist.reduce_scatter_tensor(kept, rows.contiguous())
        TRAFFIC.reduce_scattered(rows.nbytes)
        return kept

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _GatherRows.apply(gradient, None)
