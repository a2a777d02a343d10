"""Bytes that one rank holds at the peak of a step, by component; sizes as trainer.train_step keeps them.

Nothing here grows with B x N or N x N: each component is rows x width, B x width or a constant.
docs/scaling.md holds the sum against measured peaks.
"""

from dataclasses import dataclass, replace
from typing import Literal

from uatmc_dist.config import PhaseName
from uatmc_dist.parallel.graph_cost import adjacency_bytes, gathered_floats, kept_floats
from uatmc_dist.parallel.machine import GIB, Machine
from uatmc_dist.parallel.problem import FLOAT, INDEX, Problem
from uatmc_kernels.tiled import tile_width

Place = Literal["device", "host"]

# ASSUMPTIONS: CUDA context, cuBLAS and NCCL buffers on a device; Python with its imports on the host.
_CUDA_BYTES, _PROCESS_BYTES = 2 * GIB, 0.8 * GIB
# Programs that a Triton sweep starts at most on an H100 (4 for each multiprocessor), and users of a tile.
_PROGRAMS, _TILE_USERS = 4 * 132, 128
# Bytes of indices for each row of a lookup: ids, lengths, offsets, and their copies sorted by rank.
_INDICES_PER_ROW = 10 * INDEX


@dataclass(frozen=True)
class Component:
    name: str
    place: Place
    bytes: float


def memory_per_rank(
    problem: Problem, machine: Machine, ranks: int, phase: PhaseName = "adversarial"
) -> list[Component]:
    """Components of the rank with the largest blocks, at the peak of a step of that phase."""
    if phase == "clean":
        problem = replace(problem, adversary="none")
    block = -(-problem.items // ranks)
    n, d, width, batch = problem.rows(ranks), problem.embedding_dim, problem.width, problem.batch_size
    state_of = {"adagrad": lambda dim: dim, "rowwise_adagrad": lambda dim: 1, "sgd": lambda dim: 0}[problem.optimizer]
    dense = problem.dense_parameters("clean") + 3 * problem.dense_parameters(phase)  # weights, gradients, two moments
    kept = features_kept(problem, machine, ranks, phase)
    found: list[tuple[str, Place, float]] = [
        *(
            component
            for name, shape in problem.tables().items()
            for component in (
                (f"{name} table", "device", -(-shape.rows // ranks) * shape.width * FLOAT),
                (f"{name} table, optimiser state", "device", -(-shape.rows // ranks) * state_of(shape.width) * FLOAT),
            )
        ),
        ("dense part with AdamW", "device", dense * FLOAT),
        ("rows of items in a step", "device", _row_floats(problem) * n * FLOAT),
        ("rows of users in a step", "device", _user_rows(problem, ranks) * batch * width * FLOAT),
        ("indices of lookups", "device", _INDICES_PER_ROW * (n + -(-batch // ranks) * (1 + problem.history))),
        ("buffers of the score passes", "device", _score_buffers(problem, machine)),
    ]
    if problem.is_graph:
        found += [
            ("adjacency and its transpose", "device", adjacency_bytes(problem, ranks)),
            ("convolutions, kept for their gradients", "device", kept_floats(problem, ranks) * FLOAT),
            ("rows of all users and items, gathered", "device", gathered_floats(problem) * FLOAT),
        ]
    if problem.trains_projectors(phase):
        found.append(("raw features and activations", "device", _projection_floats(problem, phase) * n * FLOAT))
        # Read as float16 before they become float32; once, where they stay.
        found.append(("raw features kept", "device", kept))
        found.append(("raw features read", "host", 0.0 if kept else n * problem.stored_bytes))
    else:
        size = 2 if problem.projected_precision == "bf16" else FLOAT
        found.append(("projected features", "device", 2 * block * d * size))
    if phase == "clean":
        found.append(("alignment of modalities", "device", 4 * -(-batch // ranks) * batch * FLOAT))
    found += [
        ("order of the training pairs", "host", INDEX // 2 * problem.interactions),
        # Mapped from the catalog: the ranks of a machine share the pages.
        ("training pairs", "host", INDEX * problem.interactions),
        ("known positives", "host", INDEX * problem.interactions + INDEX * problem.users),
        ("process and libraries", "host", _PROCESS_BYTES),
    ]
    if not machine.is_cpu:
        found.append(("CUDA context and libraries", "device", _CUDA_BYTES))
    return [Component(*each) for each in found]


def features_kept(problem: Problem, machine: Machine, ranks: int, phase: PhaseName) -> float:
    """Bytes of raw features that stay on a GPU: of all of a rank's items, where every step asks for them and a quarter
    of what is free holds them (models/own_content.py); else 0."""
    if machine.is_cpu or problem.objective == "sampled" or not problem.trains_projectors(phase):
        return 0.0
    tables = sum(2 * -(-shape.rows // ranks) * shape.width * FLOAT for shape in problem.tables().values())
    size = problem.rows(ranks) * problem.stored_bytes
    return size if 4 * size <= machine.device_memory - _CUDA_BYTES - tables else 0.0


def total(components: list[Component], place: Place) -> float:
    return sum(component.bytes for component in components if component.place == place)


def fits(components: list[Component], machine: Machine, usable: float) -> bool:
    """Whether device and host each stay within that share of their memory; on a CPU they are one."""
    device, host = total(components, "device"), total(components, "host")
    if machine.is_cpu:
        return device + host <= usable * machine.device_memory
    return device <= usable * machine.device_memory and host <= usable * machine.host_memory


def _row_floats(problem: Problem) -> float:
    """float32 numbers by item that are alive together, early in the backward pass."""
    d, width = problem.embedding_dim, problem.width
    # Identity, content, the embedding, unit gradients of the clean pass, gradients being made.
    alive = d + problem.content_width + 3 * width
    if problem.perturbs:
        # Both moved rows, the perturbed embedding and its unit gradients.
        alive += 2 * d + 2 * width
    if problem.projected_precision == "bf16":
        alive += 2 * d  # both rows in float32, for the length of the step
    if problem.score_precision == "bf16":
        alive += width  # embeddings and gradients in bfloat16 beside those in float32
    return alive


def _user_rows(problem: Problem, ranks: int) -> float:
    """Tensors of B x K: looked up, gathered, padded; for each pass gradients and their sum, and rows of the pairs
    whose items are here."""
    passes = 2 if problem.perturbs else 1
    by_pair = (4 if problem.objective == "sampled" else 2) / ranks
    return 4 + passes * (2 + by_pair)


def _score_buffers(problem: Problem, machine: Machine) -> float:
    if problem.objective == "sampled":
        return 0.0
    if machine.is_cpu:
        import torch

        return 2 * problem.batch_size * tile_width(problem.batch_size, problem.items, torch.float32) * FLOAT
    return _PROGRAMS * (problem.batch_size + _TILE_USERS * problem.width) * FLOAT


def _projection_floats(problem: Problem, phase: PhaseName) -> float:
    """float32 numbers by item: raw rows, results of ReLU and LayerNorm, outputs before and after scaling. Gradients
    of the widest layer come when the other tensors of a row are gone: only what they need beyond those counts."""
    hidden = (*problem.visual_hidden, *problem.text_hidden)
    raw, activations = problem.raw_width, 2 * sum(hidden) + 4 * problem.embedding_dim
    if phase == "adversarial":  # at the encoder: raw rows are moved, and have gradients
        return _moved_floats(problem, activations)
    beyond = max(0.0, 2 * max(hidden, default=0) - _row_floats(problem))
    return raw + activations + beyond


def _moved_floats(problem: Problem, activations: float) -> float:
    raw, widest = problem.raw_width, max(problem.visual_dim, problem.text_dim)
    if not problem.perturbs:  # rows and their gradients
        return 2 * raw + activations
    # While rows are moved: rows, gradients, both perturbations, and three temporary tensors of one modality. In the
    # backward pass: rows, perturbations, moved rows, gradients, and the activations of both passes.
    return max(4 * raw + 3 * widest + activations, 4 * raw + 2 * activations)
