"""What a run needs before it is started: memory, tables, step time, and how few devices would do.

Memory and step time are ours (memory_model.py, cost_model.py); the placement of the tables is TorchRec's planner, asked
about tables on the meta device, so that no GPU and no memory is needed.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from uatmc_dist.config import AdversaryName, BackboneName, Objective, PhaseName, UserKind
from uatmc_dist.errors import UserError
from uatmc_dist.parallel.cost_model import StepCost, step_cost
from uatmc_dist.parallel.machine import Machine, Precision, h100, measured_with_ranks
from uatmc_dist.parallel.memory_model import Component, fits, memory_per_rank, total
from uatmc_dist.parallel.problem import Problem

USABLE = 0.9
"""Share of a memory that a plan may fill: allocators leave gaps."""
MOST_DEVICES = 4096
_MOST_ROWS, _MOST_COLUMNS = 10**12, 1 << 24
_MOST_CPU_RANKS = 64  # as many processes are started to measure them


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

    def verdict(self) -> list[str]:
        """What a person wants to know, a sentence a line."""
        lines = []
        for name, phase in self.phases.items():
            device, host = total(phase.memory, "device"), total(phase.memory, "host")
            step = phase.step
            lines.append(
                f"{name} phase: {1e3 * step.seconds:.1f} ms a step (device {1e3 * step.device_seconds:.1f} ms, at full "
                f"rates {1e3 * phase.at_full_rates_s:.1f} ms; host {1e3 * step.host_seconds:.1f} ms)"
            )
            lines.append(f"{name} phase: bottleneck: {step.bottleneck}; largest term: {step.largest_term}")
            lines.append(
                f"{name} phase: {'fits' if phase.fits else 'DOES NOT FIT'}: {device / 1e9:.1f} of "
                f"{self.machine.device_memory / 1e9:.0f} GB on the device, {host / 1e9:.1f} of "
                f"{self.machine.host_memory / 1e9:.0f} GB on the host, of which {USABLE:.0%} may be filled"
            )
        if self.tables_problem is not None:
            lines.append(self.tables_problem)
        smallest = "none" if self.smallest_devices is None else f"{self.smallest_devices}"
        lines.append(f"smallest number of devices that fits: {smallest} (of up to {MOST_DEVICES})")
        lines.append(f"machine: {self.machine.name}")
        return lines

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


def plan(problem: Problem, devices: int, nodes: int | None, device: str, clean_objective: Objective) -> Plan:
    """The plan of a run whose adversarial phase is `problem`. `device` is h100, or cpu: the one at hand, measured.
    `nodes` None: as few as hold the devices.

    Raises UserError, naming the option, for what makes no sense.
    """
    _check(problem, devices, nodes, device, clean_objective)
    if device == "h100":
        machine = h100(problem.score_precision)
    else:
        machine = measured_with_ranks(devices, problem.batch_size, problem.embedding_dim, problem.rows(devices))
    enough = -(-devices // machine.ranks_per_node)
    nodes = enough if nodes is None else nodes
    if devices % nodes:
        raise UserError(f"--devices {devices}: not a multiple of --nodes {nodes}; every node has as many")
    if nodes < enough:
        raise UserError(f"--nodes {nodes}: --devices {devices} need at least {enough} ({machine.ranks_per_node} each)")
    problems: dict[PhaseName, Problem] = {
        "clean": replace(problem, objective=clean_objective, adversary="none"),
        "adversarial": problem,
    }
    phases: dict[PhaseName, PhasePlan] = {}
    for phase, of_phase in problems.items():
        memory = memory_per_rank(of_phase, machine, devices, phase)
        full = replace(machine, attained={}, host_s=0.0)
        phases[phase] = PhasePlan(
            memory=memory,
            step=step_cost(of_phase, machine, devices, nodes, phase),
            at_full_rates_s=step_cost(of_phase, full, devices, nodes, phase).seconds,
            fits=fits(memory, machine, USABLE),
        )
    tables, tables_problem = None, None
    try:
        tables = plan_tables(problem, machine, devices, nodes)
    except UserError as error:
        tables_problem = str(error)
    all_fit = all(phase.fits for phase in phases.values())
    smallest = smallest_devices(problems, machine)
    return Plan(problem, machine, devices, nodes, phases, tables, tables_problem, all_fit, smallest)


def smallest_devices(problems: dict[PhaseName, Problem], machine: Machine) -> int | None:
    """Of 1, 2, 4, ... ranks on one node, then whole nodes: the smallest number on which every phase fits."""
    return next(
        (devices for devices in candidates(machine.ranks_per_node) if _all_fit(problems, machine, devices)), None
    )


def candidates(ranks_per_node: int) -> Iterator[int]:
    within = 1
    while within < ranks_per_node:
        yield within
        within *= 2
    yield from range(ranks_per_node, MOST_DEVICES + 1, ranks_per_node)


def _all_fit(problems: dict[PhaseName, Problem], machine: Machine, devices: int) -> bool:
    return all(
        fits(memory_per_rank(each, machine, devices, phase), machine, USABLE) for phase, each in problems.items()
    )


def _check(problem: Problem, devices: int, nodes: int | None, device: str, clean_objective: str) -> None:
    limits = {
        "users": (problem.users, 1, _MOST_ROWS),
        "items": (problem.items, 2, _MOST_ROWS),
        "interactions": (problem.interactions, 1, _MOST_ROWS),
        "visual-dim": (problem.visual_dim, 1, _MOST_COLUMNS),
        "text-dim": (problem.text_dim, 1, _MOST_COLUMNS),
        "batch": (problem.batch_size, 1, _MOST_COLUMNS),
        "embedding-dim": (problem.embedding_dim, 1, 4096),
        "devices": (devices, 1, _MOST_CPU_RANKS if device == "cpu" else MOST_DEVICES),
        "nodes": (1 if nodes is None else nodes, 1, devices if device == "h100" else 1),
    }
    choices = {
        "device": (device, ("h100", "cpu")),
        "clean-objective": (clean_objective, get_args(Objective)),
        "user": (problem.user, get_args(UserKind)),
        "backbone": (problem.backbone, get_args(BackboneName)),
        "objective": (problem.objective, get_args(Objective)),
        "adversary": (problem.adversary, get_args(AdversaryName)),
        "score-precision": (problem.score_precision, get_args(Precision)),
        "projected-precision": (problem.projected_precision, get_args(Precision)),
    }
    for option, (name, known) in choices.items():
        if name not in known:
            raise UserError(f"--{option} {name}: {', '.join(known)} are known")
    if problem.is_graph:
        if problem.user != "row":
            raise UserError(f"--user {problem.user}: mmgcn has users of its own kind; leave it out")
        if problem.adversary == "certified":
            raise UserError("--adversary certified: mmgcn has no certificate; give another, such as uat")
    for option, (value, least, most) in limits.items():
        if value < least:
            raise UserError(f"--{option} {value}: at least {least} is needed")
        if value > most:
            why = {"nodes": " (no more than --devices)" if device == "h100" else " (--device cpu is this machine)"}
            raise UserError(f"--{option} {value}: at most {most}{why.get(option, '')}")


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
            intra_host_bw=machine.rates.get("exchange_bytes", machine.rates["bytes"]) * per_millisecond,
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
