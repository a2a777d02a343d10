"""What one rank gets done in a second: the data sheet of a GPU, or what a CPU does when it is asked.

A cost model divides amounts of work by these rates (parallel/cost_model.py). Nothing here runs a training step.
"""

import math
import mmap
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist

from uatmc_dist.parallel import collectives
from uatmc_kernels.tiled import tile_width

Precision = Literal["fp32", "bf16"]
Resource = Literal[
    "score_flops", "dense_flops", "sigmas", "logs", "elementwise", "updates", "bytes", "fresh_bytes", "feature_bytes",
    "ring_bytes", "collectives",
]  # fmt: skip
"""What a step uses up; the amounts are explained in cost_model.Work."""

MIB, GIB = 1 << 20, 1 << 30
# A CPU's rates depend on what is measured beside them; longer is steadier, and a plan should not take minutes.
_WINDOW_S = 0.15
_MOST_ROW_BYTES = 32 * MIB
_FRESH_BYTES = 48 * MIB
_MOST_BATCH = 1 << 14


@dataclass(frozen=True)
class Machine:
    """One rank of a cluster."""

    name: str
    kernels: Literal["tiled", "triton"]
    """Which implementation of the score passes runs there; they do not count the same work."""
    ranks_per_node: int
    device_memory: float
    """Bytes that a rank may fill on its device."""
    host_memory: float
    """Bytes of host memory for each rank; where the device is the CPU, the same memory as `device_memory`."""
    rates: dict[Resource, float]
    """Amounts a second at best; network bytes are those within a node."""
    attained: dict[Resource, float] = field(default_factory=dict)
    """Share of the rate that is reached, 1 where nothing is said. Assumptions, unless the rates were measured."""
    between_nodes: float = math.inf
    """Bytes a second that one rank sends to other nodes."""
    latency_s: float = 0.0
    """A collective without content, within a node."""
    latency_per_doubling_s: float = 0.0
    """What it takes more for each doubling of the number of nodes."""
    host_s: float = 0.0
    """What a step costs however small it is: Python, autograd, TorchRec's and DeepSpeed's own work."""
    overlaps: bool = False
    """A GPU: products, special functions and memory of one kernel run beside each other, and the host runs ahead."""

    @property
    def is_cpu(self) -> bool:
        return self.kernels == "tiled"

    def rate(self, resource: Resource) -> float:
        return self.rates.get(resource, math.inf) * self.attained.get(resource, 1.0)

    def network_seconds(self, ring: float, collectives: float, nodes: int) -> dict[Resource, float]:
        """Seconds of bytes that one rank sends around a ring, and of starting so many collectives."""
        # A ring enters and leaves each node once, and all ranks of the node carry a share of it.
        around = self.rate("ring_bytes")
        if nodes > 1:
            around = min(around, self.between_nodes * self.attained.get("ring_bytes", 1.0) * self.ranks_per_node)
        latency = self.latency_s + self.latency_per_doubling_s * math.log2(nodes)
        return {"ring_bytes": ring / around, "collectives": collectives * latency}


# NVIDIA's H100 SXM5 data sheet, dense rates: 80 GB of HBM3 at 3.35 TB/s, bf16 989 Tflop/s on tensor
# cores, fp32 67 Tflop/s off them, NVLink 900 GB/s in both directions together. A DGX H100 has 8 of them, one
# 400 Gb/s InfiniBand adapter each and 2 TB of host memory. Compute capability 9.0: 132 multiprocessors of 128
# lanes, 16 special functions a clock (CUDA C++ Programming Guide, arithmetic throughput); 1.83 GHz boost.
_LANES = 132 * 128 * 1.83e9
_SPECIAL = 132 * 16 * 1.83e9
# ASSUMPTIONS. No GPU was measured by this project.
_H100_ATTAINED: dict[Resource, float] = {
    "score_flops": 0.6,
    "dense_flops": 0.6,
    "sigmas": 0.8,
    "logs": 0.8,
    "elementwise": 0.7,
    "bytes": 0.8,
    "feature_bytes": 1 / 64,  # one thread gathers and converts rows: 1 GB/s measured on a CPU, PCIe does 64
    "ring_bytes": 0.8,
}
_H100_LATENCY_S, _H100_LATENCY_PER_DOUBLING_S = 20e-6, 8e-6
HOST_S = 6.5e-3
"""What a step of tiny tensors costs one CPU rank (measured by benchmarks/scaling.py). That the host of a GPU needs as
long to launch a step is an ASSUMPTION."""


def h100(score_precision: Precision = "fp32") -> Machine:
    """H100 SXM in nodes of eight. float32 scores go as three products of bfloat16; the dense part is float32."""
    return Machine(
        name=f"H100 SXM, {score_precision} scores (data sheet and assumptions, not measured)",
        kernels="triton",
        ranks_per_node=8,
        device_memory=80e9,
        host_memory=2e12 / 8,
        rates={
            "score_flops": 989e12 / (1 if score_precision == "bf16" else 3),
            "dense_flops": 67e12,
            "sigmas": _SPECIAL / 2,  # an exponential and a reciprocal
            "logs": _SPECIAL,
            "elementwise": _LANES,
            "bytes": 3.35e12,
            "feature_bytes": 64e9,
            "ring_bytes": 450e9,
        },
        attained=_H100_ATTAINED,
        between_nodes=50e9,
        latency_s=_H100_LATENCY_S,
        latency_per_doubling_s=_H100_LATENCY_PER_DOUBLING_S,
        host_s=HOST_S,
        overlaps=True,
    )


def measured(batch: int, embedding_dim: int, rows: int, host_s: float = HOST_S) -> Machine:
    """The CPU at hand, for each rank of the present process group (or this process alone), with the tiles that a
    `batch` makes and row tensors of `rows` x `embedding_dim`.

    Collective: all ranks are busy with the same thing at the same time, so that cores, caches and memory are shared
    as in a step; each does the same amount of work, until the last one is done. Takes about two seconds.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rates = {**_tile_rates(batch, embedding_dim), **_row_rates(embedding_dim, rows)}
    latency_s = 0.0
    if ranks > 1:
        latency_s, bandwidth = _collective_costs(ranks, min(batch, _MOST_BATCH) * 2 * embedding_dim)
        rates["ring_bytes"] = bandwidth
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks
    return Machine(
        name=f"this CPU, {os.cpu_count()} cores, {ranks} rank(s) of {torch.get_num_threads()} thread(s) (measured)",
        kernels="tiled",
        ranks_per_node=ranks,
        device_memory=memory,
        host_memory=memory,
        rates=rates,
        latency_s=latency_s,
        host_s=host_s,
    )


def measured_with_ranks(ranks: int, batch: int, embedding_dim: int, rows: int) -> Machine:
    """`measured` in a group of so many new processes on this machine, each with its share of the cores."""
    if ranks == 1:
        return measured(batch, embedding_dim, rows)
    # One process imports for all of them, and all that they need.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "fbgemm_gpu.split_table_batched_embeddings_ops_training"])
    result = context.SimpleQueue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    sizes = batch, embedding_dim, rows
    torch.multiprocessing.start_processes(
        _measure_as_rank, (ranks, store.port, result, *sizes), nprocs=ranks, start_method="forkserver"
    )
    return result.get()


def _measure_as_rank(rank: int, ranks: int, port: int, result, *sizes: int) -> None:  # type: ignore[no-untyped-def]
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # of collectives with other names
    torch.set_num_threads(max((os.cpu_count() or 1) // ranks, 1))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    machine = measured(*sizes)
    if rank == 0:
        result.put(machine)
    dist.barrier()
    dist.destroy_process_group()


def _tile_rates(batch: int, embedding_dim: int) -> dict[Resource, float]:
    batch, width = min(batch, _MOST_BATCH), 2 * embedding_dim
    columns = tile_width(batch, 1 << 30, torch.float32)
    users, items = torch.randn(batch, width), torch.randn(columns, width)
    tile, scratch = torch.empty(2, batch, columns).unbind(0)
    start = torch.zeros(batch, 1)
    to_items, to_users = torch.empty(columns, width), torch.empty(batch, width)
    half_users, half_items, half_to_items = (tensor[:, embedding_dim:].contiguous() for tensor in (users, items, items))

    def products() -> None:  # three at the width of an embedding, two at that of its content half
        torch.addmm(start, users, items.T, out=tile)
        torch.mm(tile.T, users, out=to_items)
        torch.mm(tile, items, out=to_users)
        torch.addmm(start, half_users, half_items.T, out=tile)
        torch.mm(tile.T, half_users, out=half_to_items)

    def passes() -> None:
        tile.clamp_(min=0)
        torch.sub(1, scratch, out=tile)
        torch.minimum(tile, scratch, out=tile)
        scratch.sum(1)

    scores = batch * columns
    found: dict[Resource, float] = {"score_flops": _rate(products, 8 * scores * width)}
    tile.normal_()
    found["sigmas"] = _rate(lambda: torch.sigmoid(tile, out=scratch), scores)
    found["elementwise"] = _rate(passes, 4 * scores)
    tile.uniform_(-0.5, 0.0)
    found["logs"] = _rate(lambda: torch.log1p(tile, out=scratch), scores)
    return found


def _row_rates(embedding_dim: int, rows: int) -> dict[Resource, float]:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    rows = max(1, min(rows, _MOST_ROW_BYTES // (4 * embedding_dim)))
    here, there = torch.randn(2, rows, embedding_dim).unbind(0)
    weight = torch.randn(embedding_dim, embedding_dim)
    raw = torch.randn(min(rows, 4096), 1024).half().numpy()
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, embedding_dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ADAGRAD,
        pooling_mode=PoolingMode.NONE,
    )
    ids, offsets = torch.arange(rows), torch.arange(rows + 1)
    return {
        "bytes": _rate(lambda: torch.add(here, there), 12 * here.numel()),
        "dense_flops": _rate(lambda: torch.mm(here, weight), 2 * rows * embedding_dim**2),
        "updates": _rate(lambda: table(ids, offsets).backward(here), here.numel()),
        "feature_bytes": _rate(lambda: raw[::-1].astype("float32"), raw.nbytes),
        "fresh_bytes": _rate(_touch_new_pages, _FRESH_BYTES),
    }


def _touch_new_pages() -> None:
    torch.frombuffer(mmap.mmap(-1, _FRESH_BYTES), dtype=torch.float32).fill_(1)


def _collective_costs(ranks: int, floats: int) -> tuple[float, float]:
    """(seconds of a collective without content, bytes a second) from a small and a large sum and gather."""
    part = torch.zeros(-(-floats // ranks))
    gathered = torch.zeros(ranks * part.numel())

    def seconds(call: Callable[[], object], repeats: int = 20) -> float:
        call()
        return _seconds(call, repeats) / repeats

    small = torch.zeros(1)
    latency_s = seconds(lambda: collectives.reduced(small))
    sent = (2 + 1) * (ranks - 1) / ranks * 4 * gathered.numel()
    large_s = seconds(lambda: dist.all_reduce(gathered))
    large_s += seconds(lambda: collectives.gathered(part))
    return latency_s, sent / max(large_s - 2 * latency_s, 0.1 * large_s)


def _rate(call: Callable[[], object], amount: float) -> float:
    """Amount a second where every rank does the same work, until the last one is done: ranks that share cores take
    turns, and in a window of time one of them may hardly have had any."""
    call()
    count = max(1, round(_WINDOW_S / _seconds(call, 1)))
    return amount * count / _seconds(call, count)


def _seconds(call: Callable[[], object], count: int) -> float:
    """Until the slowest rank has called so many times."""
    if _has_peers():
        dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return _of_slowest(time.perf_counter() - start)


def _has_peers() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _of_slowest(seconds: float) -> float:
    if not _has_peers():
        return seconds
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)
