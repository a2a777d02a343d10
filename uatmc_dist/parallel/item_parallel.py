"""Item parallelism: what travels between the ranks for the score passes, and back.

Rank r of R owns a contiguous block of items. The users of a batch are gathered on every rank, each rank
scores them against its own block, and only vectors of B or B x K numbers travel. Every rank's loss is a
PARTIAL of the global one: the backward of each collective sums over ranks accordingly, and each backward is
itself a collective with a backward, so that second derivatives are right too.

    B  pairs of the global batch    n  active items of this rank    K  width of an embedding    R  ranks
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from uatmc_dist.parallel import collectives
from uatmc_dist.parallel.upload import upload


def num_ranks() -> int:
    """1 where no process group was joined: evaluation of a trained model needs none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


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

    def positions_of_own(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Where among some ids those of this block are."""
        return ((ids_B >= self.lo) & (ids_B < self.hi)).nonzero().squeeze(1)


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


def own_share(of_pairs: torch.Tensor) -> torch.Tensor:
    """This rank's share of what every rank has of a global batch, [B, ...]; the last ranks' may be short or empty."""
    if num_ranks() == 1:
        return of_pairs
    share = -(-len(of_pairs) // num_ranks())
    return of_pairs[own_rank() * share : (own_rank() + 1) * share]


def sum_over_ranks(partial: torch.Tensor) -> torch.Tensor:
    """Sum over ranks; differentiable, to any order."""
    return partial if num_ranks() == 1 else _SumRanks.apply(partial)


def sum_for_all(partial: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, of which every rank makes the same share of the loss: no gradient has to travel."""
    return partial if num_ranks() == 1 else _SumForAll.apply(partial)


def max_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The largest of all ranks, number by number; no graph."""
    return values if num_ranks() == 1 else collectives.reduced(values.detach(), dist.ReduceOp.MAX)


def logsumexp_over_ranks(local_B: torch.Tensor) -> torch.Tensor:
    """log-sum-exp of all ranks' values; -inf counts as nothing. Two vectors of B numbers travel; differentiable, to any
    order."""
    if num_ranks() == 1:
        return local_B
    largest_B = collectives.reduced(local_B.detach(), dist.ReduceOp.MAX)
    largest_B.masked_fill_(largest_B == -torch.inf, 0)
    total_B = sum_over_ranks((local_B - largest_B).exp())
    # Where no rank has an item: log(0) would be right, and its gradient NaN.
    return total_B.clamp(min=torch.finfo(total_B.dtype).tiny).log() + largest_B


@dataclass(frozen=True)
class OnTheWay:
    """Rows of all ranks: what does not need them can be computed until `wait`."""

    _rows: torch.Tensor
    _place_B: torch.Tensor | None = None
    """Where each lies among `_rows`; None: in order."""
    _works: list[dist.Work] = field(default_factory=list)

    def wait(self) -> torch.Tensor:
        """All B rows; differentiable."""
        for work in self._works:
            work.wait()
        return self._rows if self._place_B is None else self._rows.index_select(0, self._place_B)


def gather_from_owners(
    own_rows: Callable[[torch.Tensor], torch.Tensor], ids_B: torch.Tensor, block: ItemBlock
) -> OnTheWay:
    """Starts to gather the rows of these ids on every rank; `own_rows` has those of this rank's block. As many rows
    travel from each rank as from the one that has the most; where these are so many that a sum sends less, as of ids
    in a row, they are added up."""
    if num_ranks() == 1:
        return OnTheWay(own_rows(ids_B))
    owner_B = ids_B // block.size
    counts_R = torch.bincount(owner_B, minlength=block.world_size).tolist()
    share = max(counts_R)
    if share * block.world_size > 2 * len(ids_B):
        return OnTheWay(sum_from_owners(own_rows, ids_B, block))
    rows_mK = own_rows(ids_B[block.positions_of_own(ids_B)])
    place_B = torch.empty_like(ids_B)
    place_B[owner_B.argsort(stable=True)] = _padded_places(counts_R, share)
    works: list[dist.Work] = []
    return OnTheWay(_gather_padded(rows_mK, share, works), upload(place_B, rows_mK.device), works)


def sum_from_owners(
    own_rows: Callable[[torch.Tensor], torch.Tensor], ids_B: torch.Tensor, block: ItemBlock
) -> torch.Tensor:
    """The rows [B, K] of these ids on every rank, added up from what each has in its block. Differentiable."""
    mine_m = block.positions_of_own(ids_B)
    rows_mK = own_rows(ids_B[mine_m])
    share_BK = rows_mK.new_zeros(len(ids_B), rows_mK.shape[1])
    return sum_over_ranks(share_BK.index_add(0, upload(mine_m, rows_mK.device), rows_mK))


def rows_asked_for(
    own_rows: Callable[[torch.Tensor], torch.Tensor], ids_m: torch.Tensor, block: ItemBlock, at_once: int
) -> torch.Tensor:
    """The rows of these ids, of which every rank asks for others; `at_once` travel to all ranks together. No graph.
    Collective."""
    if num_ranks() == 1:
        return own_rows(ids_m)
    share, kept = -(-at_once // num_ranks()), [own_rows(ids_m[:0])]
    for start in range(0, int(max_over_ranks(torch.tensor([len(ids_m)]))), share):
        asked_s = ids_m[start : start + share]
        all_ids = collectives.gathered(F.pad(asked_s, (0, share - len(asked_s)), value=-1))
        mine_p = block.positions_of_own(all_ids)
        rows = kept[0].new_zeros(len(all_ids), kept[0].shape[1])
        rows[mine_p] = own_rows(all_ids[mine_p])
        kept.append(collectives.scattered_sum(rows)[: len(asked_s)])
    return torch.cat(kept)


def counts_of_ranks(number: int) -> list[int]:
    """What each rank has of something. Collective."""
    return [number] if num_ranks() == 1 else collectives.gathered(torch.tensor([number])).tolist()


def gather_rows(rows_n: torch.Tensor, counts_R: list[int]) -> torch.Tensor:
    """Rows of all ranks, in rank order; rank r gives counts_R[r] of them. Differentiable."""
    if len(counts_R) == 1:
        return rows_n
    share = max(max(counts_R), 1)
    gathered = _gather_padded(rows_n, share)
    total = sum(counts_R)
    if counts_R == [min(max(total - rank * share, 0), share) for rank in range(len(counts_R))]:
        return gathered[:total]  # blocks of a table: only the last ones are short
    return gathered.index_select(0, upload(_padded_places(counts_R, share), rows_n.device))


def scores_at(users_BK: torch.Tensor, rows_nK: torch.Tensor, places: Places) -> torch.Tensor:
    """This rank's share of <user b, row of its item>, at least in float32: zero where the item is not here. Sum over
    ranks for all."""
    dtype = torch.promote_types(users_BK.dtype, torch.float32)
    rows_MK = rows_nK.index_select(0, places.index_M).to(dtype)
    if len(rows_MK) == len(users_BK):  # all of them are here, and in order
        return (users_BK.to(dtype) * rows_MK).sum(1)
    scores_M = (users_BK.index_select(0, places.mine_M).to(dtype) * rows_MK).sum(1)
    return scores_M.new_zeros(len(users_BK)).index_add(0, places.mine_M, scores_M)


def merge_topk(scores_Bk: torch.Tensor, ids_Bk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Best k of all ranks' best k, given global ids; ties stay ordered by item, as blocks ascend with the rank."""
    ranks, k = num_ranks(), scores_Bk.shape[1]
    if ranks == 1:
        return scores_Bk, ids_Bk
    all_scores, all_ids = (
        collectives.gathered(of_rank).view(ranks, -1, k).transpose(0, 1).flatten(1) for of_rank in (scores_Bk, ids_Bk)
    )
    scores, order = all_scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], all_ids.gather(1, order[:, :k])


def _padded_places(counts_R: list[int], share: int) -> torch.Tensor:
    """Where the rows lie among gathered ones that were padded to `share` a rank, in rank order."""
    return torch.cat([torch.arange(count) + rank * share for rank, count in enumerate(counts_R)])


def _gather_padded(rows_n: torch.Tensor, share: int, on_the_way: list[dist.Work] | None = None) -> torch.Tensor:
    return _GatherRows.apply(F.pad(rows_n, (0, 0, 0, share - len(rows_n))), on_the_way)


class _SumRanks(torch.autograd.Function):
    """all-reduce; its consumers are partial losses, so its backward is an all-reduce too."""

    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return collectives.reduced(partial)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _SumRanks.apply(gradient)


class _SumForAll(_SumRanks):
    """The same where its gradient is equal on every rank, so that their sum is known."""

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return num_ranks() * gradient


class _GatherRows(torch.autograd.Function):
    """all-gather of equal row blocks (parallel/collectives.py, gathered)."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, on_the_way: list[dist.Work] | None) -> torch.Tensor:  # type: ignore[override]
        return collectives.gathered(rows, on_the_way)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _ReduceScatterRows.apply(gradient), None


class _ReduceScatterRows(torch.autograd.Function):
    """Sum over ranks, of which each keeps its own block of rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return collectives.scattered_sum(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _GatherRows.apply(gradient, None)
