"""What a run needs before it is started: memory, tables, step time, and how few devices would do.

Memory and step time are ours (memory_model.py, cost_model.py); the placement of the tables is TorchRec's planner, asked
about tables on the meta device, so that no GPU and no memory is needed.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from uatmc_dist.config import Objective
from uatmc_dist.errors import UserError
from uatmc_dist.models.vbpr import PhaseName
from uatmc_dist.parallel.cost_model import FLOAT, Problem, StepCost, step_cost
from uatmc_dist.parallel.machine import Machine, h100, measured_with_ranks
from uatmc_dist.parallel.memory_model import Component, fits, memory_per_rank, total

USABLE = 0.9
"""Share of a memory that a plan may fill: allocators leave gaps."""
MOST_DEVICES = 4096
PHASES: tuple[PhaseName, PhaseName] = "clean", "adversarial"


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
    """Its estimate of a step. It takes the items' lookup for a real exchange; ours stays on the rank."""


@dataclass(frozen=True)
class PhasePlan:
    """One phase of training with the devices that were asked for."""

    memory: list[Component]
    step: StepCost
    at_full_rates_s: float
    """The step at the rates of the data sheet, the host left out: no assumption in it but the counts."""
    fits: bool


@dataclass(frozen=True)
class Plan:
    problem: Problem
    machine: Machine
    devices: int
    nodes: int
    phases: dict[PhaseName, PhasePlan]
    tables: list[TablePlan] | None
    """None where TorchRec's planner finds no placement; `tables_problem` says why."""
    tables_problem: str | None
    fits: bool
    smallest_devices: int | None
    """Smallest number of devices that both phases fit on; None: none up to MOST_DEVICES."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        for name, phase in self.phases.items():
            values["phases"][name]["step"]["bottleneck"] = phase.step.bottleneck
            values["phases"][name]["device_bytes"] = total(phase.memory, "device")
            values["phases"][name]["host_bytes"] = total(phase.memory, "host")
            for term, found in zip(phase.step.terms, values["phases"][name]["step"]["terms"], strict=True):
                found["work"] = term.work.counts()
        # Rates without limit are left out: JSON knows no infinity.
        values["machine"] = {key: value for key, value in values["machine"].items() if value != float("inf")}
        return values


def plan(
    problem: Problem, devices: int, nodes: int, device: Literal["h100", "cpu"], clean_objective: Objective = "sampled"
) -> Plan:
    """The plan of a run whose adversarial phase is `problem`; `device` cpu measures the CPU at hand.

    Raises UserError, naming the option, for what makes no sense.
    """
    _check(problem, devices, nodes, device)
    if device == "h100":
        machine = h100(problem.score_precision)
    else:
        machine = measured_with_ranks(devices, problem.batch_size, problem.embedding_dim, problem.rows(devices))
    if devices // nodes > machine.ranks_per_node:
        raise UserError(
            f"--devices {devices}: {devices // nodes} on each of --nodes {nodes}, but a node of {device} has "
            f"{machine.ranks_per_node}; give at least --nodes {-(-devices // machine.ranks_per_node)}"
        )
    problems = {"clean": replace(problem, objective=clean_objective), "adversarial": problem}
    phases: dict[PhaseName, PhasePlan] = {}
    for phase in PHASES:
        memory = memory_per_rank(problems[phase], machine, devices, phase)
        step = step_cost(problems[phase], machine, devices, nodes, phase)
        full = replace(machine, attained={}, host_s=0.0)
        floor = step_cost(problems[phase], full, devices, nodes, phase).seconds
        phases[phase] = PhasePlan(memory, step, floor, fits(memory, machine, USABLE))
    try:
        tables, tables_problem = plan_tables(problem, machine, devices, nodes), None
    except UserError as error:
        tables, tables_problem = None, str(error)
    all_fit = all(phase.fits for phase in phases.values())
    smallest = smallest_devices(problems, machine)
    return Plan(problem, machine, devices, nodes, phases, tables, tables_problem, all_fit, smallest)


def smallest_devices(problems: dict[PhaseName, Problem], machine: Machine) -> int | None:
    """Of 1, 2, 4, ... ranks on one node, then whole nodes: the smallest number on which every phase fits."""
    return next((devices for devices in candidates(machine.ranks_per_node) if _all_fit(problems, machine, devices)), None)


def candidates(ranks_per_node: int) -> Iterator[int]:
    within = 1
    while within < ranks_per_node:
        yield within
        within *= 2
    yield from range(ranks_per_node, MOST_DEVICES + 1, ranks_per_node)


def _all_fit(problems: dict[PhaseName, Problem], machine: Machine, devices: int) -> bool:
    return all(fits(memory_per_rank(each, machine, devices, phase), machine, USABLE) for phase, each in problems.items())


def _check(problem: Problem, devices: int, nodes: int, device: str) -> None:
    at_least = {
        "users": (problem.users, 1),
        "items": (problem.items, 2),
        "interactions": (problem.interactions, 1),
        "visual-dim": (problem.visual_dim, 1),
        "text-dim": (problem.text_dim, 1),
        "batch": (problem.batch_size, 1),
        "embedding-dim": (problem.embedding_dim, 1),
        "devices": (devices, 1),
        "nodes": (nodes, 1),
    }
    for option, (value, least) in at_least.items():
        if value < least:
            raise UserError(f"--{option} {value}: at least {least} is needed")
    if nodes > devices:
        raise UserError(f"--nodes {nodes}: more than --devices {devices}")
    if devices % nodes:
        raise UserError(f"--devices {devices}: not a multiple of --nodes {nodes}; every node has as many")
    if devices > MOST_DEVICES:
        raise UserError(f"--devices {devices}: plans go up to {MOST_DEVICES}")
    if device == "cpu" and nodes > 1:
        raise UserError(f"--nodes {nodes}: --device cpu measures this machine, which is one node")
    if device == "cpu" and devices > _MOST_CPU_RANKS:
        raise UserError(f"--devices {devices}: --device cpu starts as many processes here; at most {_MOST_CPU_RANKS}")


_MOST_CPU_RANKS = 64


def plan_tables(problem: Problem, machine: Machine, devices: int, nodes: int) -> list[TablePlan]:
    """TorchRec's EmbeddingShardingPlanner about the two tables: row-wise, fused, as models/tables.py shards them.

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
    from torchrec.modules.embedding_configs import EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection
    from torchrec.optim import RowWiseAdagrad

    sizes = {"user": (problem.users, problem.width), "item": (problem.items, problem.embedding_dim)}
    module = torch.nn.ModuleDict(
        {
            name: EmbeddingCollection(
                tables=[EmbeddingConfig(name=name, embedding_dim=dim, num_embeddings=rows, feature_names=[name])],
                device=torch.device("meta"),
            )
            for name, (rows, dim) in sizes.items()
        }
    )
    # The planner reads the optimiser, whose state it counts, from the parameters.
    optimizers = {"adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
    _apply_optimizer_in_backward(
        optimizers[problem.optimizer], module.parameters(), {"lr": 0.01}, register_hook=False
    )
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
            intra_host_bw=machine.rates.get("exchange_bytes", machine.rates["bytes"]) * per_millisecond,
            inter_host_bw=min(machine.between_nodes, machine.rates["bytes"]) * per_millisecond,
        ),
        kernel_config=KernelConfig(
            compute_device="cpu" if machine.is_cpu else "cuda", use_hardware_based_bandwidth=True
        ),
    )
    looked_up = {"user": -(-problem.batch_size // devices), "item": problem.rows(devices)}
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints={
            name: ParameterConstraints(
                sharding_types=[ShardingType.ROW_WISE.value],
                compute_kernels=[EmbeddingComputeKernel.FUSED.value],
                pooling_factors=[1.0],
                batch_sizes=[count],
            )
            for name, count in looked_up.items()
        },
        storage_reservation=FixedPercentageStorageReservation(percentage=1 - USABLE),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        planner.plan(module, [EmbeddingCollectionSharder()])
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
