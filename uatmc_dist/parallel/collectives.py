"""Sums and gathers over all ranks, each in the way that its backend is quickest at. NCCL has its own ways. Gloo passes
messages round a ring, up to 2 (R - 1) of them one after another, and each wakes a process; in an all-to-all every rank
writes to every other at once. What comes out is the same, bit by bit, on every rank: shares are added in rank order.

What travels is counted (traffic.py).

    R  ranks
"""

import torch
import torch.distributed as dist

from uatmc_dist.parallel.traffic import TRAFFIC

_SMALL_BYTES = 1 << 16
"""R copies of so much are there sooner than the ring's 2 (R - 1) / R."""


def reduced(values: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
    """The ranks' values reduced, number by number: SUM or MAX."""
    TRAFFIC.all_reduced(values.nbytes)
    if values.device.type == "cpu" and values.nbytes <= _SMALL_BYTES:
        copies_R = values.reshape(1, -1).expand(dist.get_world_size(), -1).contiguous()
        received_R = torch.empty_like(copies_R)
        dist.all_to_all_single(received_R, copies_R)
        return (received_R.sum(0) if op == dist.ReduceOp.SUM else received_R.amax(0)).view_as(values)
    total = values.contiguous().clone()
    dist.all_reduce(total, op)
    return total


def gathered(rows_n: torch.Tensor, on_the_way: list[dist.Work] | None = None) -> torch.Tensor:
    """The ranks' rows, as many of each, in rank order. With a list the result is not there before the work that is put
    into it is done."""
    ranks, is_async = dist.get_world_size(), on_the_way is not None
    all_rows = rows_n.new_empty((ranks * rows_n.shape[0], *rows_n.shape[1:]))
    TRAFFIC.gathered(all_rows.nbytes)
    if rows_n.device.type == "cpu":
        copies = rows_n.expand(ranks, *rows_n.shape).reshape(all_rows.shape).contiguous()  # one row stays a view
        work = dist.all_to_all_single(all_rows, copies, async_op=is_async)
    else:
        work = dist.all_gather_into_tensor(all_rows, rows_n.contiguous(), async_op=is_async)
    if on_the_way is not None:
        on_the_way.append(work)
    return all_rows


def scattered_sum(rows: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, of which each keeps its own block of rows."""
    TRAFFIC.reduce_scattered(rows.nbytes)
    ranks = dist.get_world_size()
    kept = rows.new_empty((rows.shape[0] // ranks, *rows.shape[1:]))
    if rows.device.type == "cpu":
        shares = torch.empty_like(rows, memory_format=torch.contiguous_format)
        dist.all_to_all_single(shares, rows.contiguous())
        return torch.sum(shares.view(ranks, *kept.shape), dim=0, out=kept)
    dist.reduce_scatter_tensor(kept, rows.contiguous())
    return kept
