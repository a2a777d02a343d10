"""What a run needs before it is started: memory, tables, step time, and how few devices would do.

Memory and step time are ours (memory_model.py, cost_model.py); the placement of the tables is that of TorchRec's
planner (placement.py).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from uatmc_dist.config import AdversaryName, BackboneName, Objective, PerturbedRows, PhaseName, UserKind
from uatmc_dist.errors import UserError
from uatmc_dist.parallel.cost_model import StepCost, step_cost
from uatmc_dist.parallel.machine import Machine, Precision, h100, measured_with_ranks
from uatmc_dist.parallel.memory_model import Component, fits, memory_per_rank, total
from uatmc_dist.parallel.placement import USABLE, TablePlan, plan_tables
from uatmc_dist.parallel.problem import Problem

MOST_DEVICES = 4096
_MOST_ROWS, _MOST_COLUMNS = 10**12, 1 << 24
_MOST_CPU_RANKS = 64  # as many processes are started to measure them


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
        "at": (problem.at, get_args(PerturbedRows)),
        "score-precision": (problem.score_precision, get_args(Precision)),
        "projected-precision": (problem.projected_precision, get_args(Precision)),
    }
    for option, (name, known) in choices.items():
        if name not in known:
            raise UserError(f"--{option} {name}: {', '.join(known)} are known")
    if problem.at == "encoder" and problem.adversary in ("certified", "uat_mc"):
        raise UserError(f"--adversary {problem.adversary}: is not for rows at the encoder; give another, such as uat")
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
