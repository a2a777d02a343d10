"""Where TorchRec's planner would place the tables: asked about tables on the meta device, so that no GPU and no memory
is needed.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from uatmc_dist.errors import UserError
from uatmc_dist.parallel.machine import Machine
from uatmc_dist.parallel.problem import Problem

USABLE = 0.9
"""Share of a memory that a plan may fill: allocators leave gaps."""


@dataclass(frozen=True)
class TablePlan:
    """TorchRec's planner about one table."""

    name: str
    rows: int
    width: int
    sharding: str
    kernel: str
    shards: int
    rows_per_shard: int
    bytes_per_rank: float
    """Weights, optimiser state, inputs and outputs of the largest shard, as TorchRec estimates them."""
    milliseconds: dict[str, float]
    """Its estimate of a step. It takes lookups for TorchRec's exchanges; ours stay on the rank."""


def plan_tables(problem: Problem, machine: Machine, devices: int, nodes: int) -> list[TablePlan]:
    """TorchRec's EmbeddingShardingPlanner about the tables: row-wise, fused, as models/tables.py shards them.

    Raises UserError with TorchRec's reason where it finds no placement.
    """
    with _silence():
        return _plan_tables(problem, machine, devices, nodes)


def _plan_tables(problem: Problem, machine: Machine, devices: int, nodes: int) -> list[TablePlan]:
    # TorchRec takes seconds to import.
    import torch
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.stats import NoopEmbeddingStats
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import (
        HardwareConfig,
        KernelConfig,
        PlannerError,
        TopologyFactory,
        TrainerConfig,
    )
    from torchrec.distributed.types import ShardingType
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.optim import RowWiseAdagrad

    class RowWiseBags(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            """TorchRec names row-wise bags on GPUs alone; they run on CPUs, too (models/tables.py)."""
            return [ShardingType.ROW_WISE.value]

    sizes = {name: (shape.rows, shape.width) for name, shape in problem.tables().items()}

    def collection(name: str) -> torch.nn.Module:
        rows, dim = sizes[name]
        kind, row = (
            (EmbeddingBagCollection, EmbeddingBagConfig)
            if name == "history"
            else (EmbeddingCollection, EmbeddingConfig)
        )
        table = row(name=name, embedding_dim=dim, num_embeddings=rows, feature_names=[name])
        return kind(tables=[table], device=torch.device("meta"))

    module = torch.nn.ModuleDict({name: collection(name) for name in sizes})
    # The planner reads the optimiser, whose state it counts, from the parameters.
    optimizers = {"adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
    _apply_optimizer_in_backward(optimizers[problem.optimizer], module.parameters(), {"lr": 0.01}, register_hook=False)
    per_millisecond = 1e-3
    topology = TopologyFactory.create_topology(
        trainer_config=TrainerConfig(
            world_size=devices,
            local_world_size=devices // nodes,
            hbm_cap_bytes=int(machine.device_memory),
            ddr_cap_bytes=int(machine.host_memory),
        ),
        hardware_config=HardwareConfig(
            hbm_mem_bw=machine.rates["bytes"] * per_millisecond,
            ddr_mem_bw=machine.rates["bytes"] * per_millisecond,
            intra_host_bw=machine.rates.get("ring_bytes", machine.rates["bytes"]) * per_millisecond,
            inter_host_bw=min(machine.between_nodes, machine.rates["bytes"]) * per_millisecond,
        ),
        kernel_config=KernelConfig(
            compute_device="cpu" if machine.is_cpu else "cuda", use_hardware_based_bandwidth=True
        ),
    )
    share = -(-problem.batch_size // devices)
    looked_up = dict.fromkeys(sizes, share) | {"item": problem.rows(devices)}
    if problem.is_graph:  # all of its own rows, at every step
        looked_up = {name: -(-rows // devices) for name, (rows, _) in sizes.items()}
    per_bag = dict.fromkeys(sizes, 1.0) | {"history": problem.history}
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints={
            name: ParameterConstraints(
                sharding_types=[ShardingType.ROW_WISE.value],
                compute_kernels=[EmbeddingComputeKernel.FUSED.value],
                pooling_factors=[per_bag[name]],
                batch_sizes=[looked_up[name]],
            )
            for name in sizes
        },
        storage_reservation=FixedPercentageStorageReservation(percentage=1 - USABLE),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        planner.plan(module, [EmbeddingCollectionSharder(), RowWiseBags()])
    except PlannerError as error:
        raise UserError(f"TorchRec's planner finds no placement: {_first_sentence(str(error))}") from None
    place = "ddr" if machine.is_cpu else "hbm"
    return [
        TablePlan(
            name=option.name,
            rows=sizes[option.name][0],
            width=sizes[option.name][1],
            sharding=option.sharding_type,
            kernel=option.compute_kernel,
            shards=option.num_shards,
            rows_per_shard=option.shards[0].size[0],
            bytes_per_rank=max(getattr(shard.storage, place) for shard in option.shards),
            milliseconds={
                part: max(getattr(shard.perf, part) for shard in option.shards)
                for part in ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")
            },
        )
        for option in planner._best_plan or []
    ]


def _first_sentence(text: str) -> str:
    return " ".join(text.split())[:160]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """TorchRec logs every proposal it makes, through loggers of several names."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
