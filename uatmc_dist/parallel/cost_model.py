"""What a step of the trainer costs: amounts of work by term, divided by what a machine does in a second.

Each term counts what the code of trainer.train_step does on one rank, for the largest block of items; terms run one
after the other. docs/scaling.md holds the model against measured steps.

    B  pairs of the global batch    N  items    n  active items of a rank    d  embedding_dim    R  ranks
    K  width of an embedding    C  its columns of content
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from uatmc_dist.config import PhaseName
from uatmc_dist.parallel.graph_cost import propagation_work
from uatmc_dist.parallel.machine import Machine, Precision, Resource
from uatmc_dist.parallel.memory_model import features_kept
from uatmc_dist.parallel.problem import FLOAT, INDEX, Problem, Work

# glibc maps what is larger anew (DEFAULT_MMAP_THRESHOLD_MAX), unless the heap happens to have room.
_ALWAYS_MAPPED = 32 << 20


@dataclass(frozen=True)
class Term:
    name: str
    work: Work
    seconds: float
    seconds_by_resource: dict[Resource, float]

    @property
    def limit(self) -> str:
        return max(self.seconds_by_resource, key=self.seconds_by_resource.__getitem__) if self.seconds else "-"


@dataclass(frozen=True)
class StepCost:
    phase: PhaseName
    terms: tuple[Term, ...]
    device_seconds: float
    """All terms but the reading of features."""
    host_seconds: float
    """The fixed cost of a step, and the reading of features."""
    seconds: float

    @property
    def largest_term(self) -> str:
        largest = max(self.terms, key=lambda term: term.seconds)
        return f"{largest.name} ({LIMITS[largest.limit]})"

    @property
    def bottleneck(self) -> str:
        """The largest term and what limits it, or the host, where its fixed cost is more than all terms together."""
        fixed = self.host_seconds - _reading(self.terms)
        return FIXED if fixed > sum(term.seconds for term in self.terms) else self.largest_term


FIXED = "the host's fixed cost (launching a step takes longer than doing it)"


LIMITS = {
    "score_flops": "products of the score passes",
    "dense_flops": "dense products",
    "sigmas": "exponentials",
    "logs": "logarithms",
    "elementwise": "instructions of the score passes",
    "updates": "updates of embedding rows",
    "bytes": "memory bandwidth",
    "fresh_bytes": "page faults of new tensors",
    "feature_bytes": "reading raw features",
    "ring_bytes": "network bandwidth",
    "collectives": "latency of collectives",
    "-": "nothing",
}

# Instructions of a lane for each score on an H100 by (precision, K): sweep by users, sweep by items, HVP. Read from
# the compiled kernels (docs/kernels.md, "What they compile to"), times the slices of their output, each of which is a
# sweep of its own; a width in between takes the next one.
H100_INSTRUCTIONS: dict[tuple[Precision, int], tuple[float, float, float]] = {
    ("bf16", 32): (18.5, 9.2, 20.6),
    ("bf16", 64): (18.7, 9.5, 21.0),
    ("bf16", 128): (19.6, 11.9, 21.9),
    ("bf16", 256): (23.6, 13.5, 30.3),
    ("fp32", 32): (28.2, 21.0, 39.4),
    ("fp32", 64): (30.9, 22.2, 43.6),
    ("fp32", 128): (43.4, 42.4, 52.8),
    ("fp32", 256): (127.2, 80.4, 103.7),
}


def step_cost(
    problem: Problem, machine: Machine, ranks: int, nodes: int = 1, phase: PhaseName = "adversarial"
) -> StepCost:
    """Seconds of one step with `ranks` ranks on `nodes` nodes, by term."""
    terms = [_priced(name, work, machine, nodes) for name, work in _terms(problem, machine, ranks, phase)]
    host = machine.host_s + _reading(terms)
    device = sum(term.seconds for term in terms) - _reading(terms)
    seconds = max(device, host) if machine.overlaps else device + host
    return StepCost(phase, tuple(terms), device, host, seconds)


def _reading(terms: Iterable[Term]) -> float:
    return sum(term.seconds_by_resource.get("feature_bytes", 0.0) for term in terms)


def _priced(name: str, work: Work, machine: Machine, nodes: int) -> Term:
    on_rank: dict[Resource, float] = {}
    network: tuple[Resource, ...] = ("ring_bytes", "collectives")
    for resource, amount in work.counts().items():
        if resource not in network:
            on_rank[resource] = amount / machine.rate(resource)  # type: ignore[index, arg-type]
    sent = machine.network_seconds(work.ring_bytes, work.collectives, nodes)
    busy = on_rank.values()
    seconds = (max(busy, default=0.0) if machine.overlaps else sum(busy)) + sum(sent.values())
    return Term(name, work, seconds, {name: value for name, value in (on_rank | sent).items() if value})


def _terms(problem: Problem, machine: Machine, ranks: int, phase: PhaseName) -> Iterator[tuple[str, Work]]:
    if phase == "clean":
        problem = replace(problem, adversary="none")
    n, d, width, columns = problem.rows(ranks), problem.embedding_dim, problem.width, problem.content_width
    batch, share = problem.batch_size, -(-problem.batch_size // ranks)
    row, embedding = d * FLOAT, width * FLOAT  # of an item
    passes = 2 if problem.perturbs else 1

    if problem.trains_projectors(phase):
        kept = features_kept(problem, machine, ranks, phase)  # stored as float16, read on the host or made float32
        yield "read features", Work(bytes=3 * kept) if kept else Work(feature_bytes=n * problem.stored_bytes)
        yield "project", _projection(problem, n, phase)
    if problem.is_graph:
        own = sum(-(-shape.rows // ranks) * shape.width for shape in problem.tables().values())
        yield "rows of users and items", _lookup(problem, machine, own, 1)
        yield from propagation_work(problem, ranks)
    else:
        if problem.has_rows:
            yield "user rows", _lookup(problem, machine, share, width)
        if problem.has_history:
            yield "pool histories", _pooling(problem, machine, share, width)
        yield "item rows", _lookup(problem, machine, n, d)
        # Forward of a fusion: two products read and written (4), summed (3), joined to the identities (4). Backward:
        # gradient read for each matrix and the bias, inputs read (5); products of weights alone, rows are constants.
        yield "fuse", Work(dense_flops=passes * 8 * n * d**2, bytes=passes * (6 * d + 10 * columns) * n * FLOAT)
    if problem.has_history:  # sums, forward and backward
        yield "sum users", _ring(ranks, 4 * batch * embedding, calls=2)
    else:
        yield "gather users", _ring(ranks, 2 * batch * embedding, calls=2)
    yield "score, clean", _scores(problem, machine, n)
    if problem.ascends:
        yield "adversary", _ascent(problem, machine, n)
        if problem.coordinates:
            yield "score, HVP", _hvp(problem, machine, n)
    elif problem.perturbs:  # noise: drawn, scaled, added
        yield "adversary", _moved(problem, n)
    if problem.perturbs:
        yield "score, perturbed", _scores(problem, machine, n)
    # The unit gradients of each pass, scaled (4); those of the adversary once more; added up where items are used
    # more than once (3 each, with the norms'); squares and their gradient (7).
    scaled = passes + problem.ascends
    yield "row gradients", Work(bytes=2 * scaled * n * embedding + (3 * passes + 7) * n * row)
    if machine.is_cpu:
        # Embeddings, unit gradients and scaled gradients of a pass; rows made by fusion, adversary and gradients.
        embeddings, rows = (2 * passes + scaled) * n * embedding, (5 + 3 * passes + 8 * problem.ascends) * n * row
        fresh = embeddings * (n * embedding > _ALWAYS_MAPPED) + rows * (n * row > _ALWAYS_MAPPED)
        yield "new pages", Work(fresh_bytes=fresh)
    if phase == "clean":
        yield "align modalities", _alignment(problem, ranks)
    # Positive scores (or differences) forward and backward, twice backward where the adversary asked for g; the
    # HVP's two; norms; the check for NaN.
    sums = 2 * passes + problem.ascends + 2 * problem.coordinates + 2
    yield "sums over ranks", _ring(ranks, 2 * sums * batch * FLOAT, calls=sums)
    parameters = problem.dense_parameters(phase)
    dense = _ring(ranks, 2 * parameters * FLOAT, calls=1)
    yield "dense update", replace(dense, bytes=7 * parameters * FLOAT)


def _ring(ranks: int, sent: float, calls: int) -> Work:
    """Collectives in which all but this rank's own part of `sent` bytes goes around."""
    return Work() if ranks == 1 else Work(ring_bytes=sent * (ranks - 1) / ranks, collectives=calls)


def _lookup(problem: Problem, machine: Machine, rows: int, dim: int) -> Work:
    """TorchRec's lookup of so many rows of a rank's own, and their update."""
    state = {"adagrad": 2 * dim, "rowwise_adagrad": 2, "sgd": 0}[problem.optimizer]
    floats = rows * dim
    # Looked up (2), divided by the world size (2), gradient read (1), row read and written (2), state the same.
    traffic = FLOAT * (7 * floats + rows * state) + 8 * rows * INDEX
    return Work(bytes=traffic, updates=floats if machine.is_cpu else 0.0)


def _pooling(problem: Problem, machine: Machine, share: int, dim: int) -> Work:
    """TorchRec's weighted sums over histories and the update of their rows: a rank works on the entries of all users
    that lie in its block."""
    entries = share * problem.history
    state = {"adagrad": 2 * dim, "rowwise_adagrad": 2, "sgd": 0}[problem.optimizer]
    # A row read (1) for the sum; its bag's gradient read (1), row read and written (2), state the same.
    traffic = FLOAT * (4 * entries * dim + entries * state + 4 * problem.batch_size * dim) + 10 * entries * INDEX
    return Work(bytes=traffic, updates=entries * dim if machine.is_cpu else 0.0)


def _scores(problem: Problem, machine: Machine, n: int) -> Work:
    """Loss, and gradients of users and items."""
    batch, width = problem.batch_size, problem.width
    if problem.objective == "sampled":  # two rows a pair are picked, multiplied, summed, and the same backward
        return Work(bytes=20 * batch * width * FLOAT, sigmas=2 * batch, logs=batch)
    scores, rows = batch * n, (batch + n) * width * FLOAT
    if problem.objective == "softmax":
        # A sweep for the sum that carries the largest score, and one, on a GPU one a side, for the gradients.
        if machine.is_cpu:
            return Work(score_flops=8 * scores * width, sigmas=2 * scores, elementwise=4 * scores, bytes=3 * rows)
        by_users, by_items, _ = _instructions(problem)
        return Work(
            score_flops=10 * scores * width,
            sigmas=3 * scores,
            elementwise=(2 * by_users + by_items) * scores,
            bytes=4 * rows,
        )
    if machine.is_cpu:
        # In each tile: the start of the product, clamp, its sum, 1 - sigma, minimum, sum of sigma; then halves of
        # products of four (3/4), their sign and their sum (1/4 each). One logarithm for four scores.
        return Work(
            score_flops=6 * scores * width, sigmas=scores, logs=scores / 4, elementwise=7.25 * scores, bytes=2 * rows
        )
    # Two sweeps: users own tiles in one, items in the other, and scores are computed in both.
    by_users, by_items, _ = _instructions(problem)
    return Work(
        score_flops=8 * scores * width,
        sigmas=2 * scores,
        logs=scores / 16,
        elementwise=(by_users + by_items) * scores,
        bytes=3 * rows,
    )


def _hvp(problem: Problem, machine: Machine, n: int) -> Work:
    """Scores and their change along omega, then gradients of the content half; one sweep everywhere."""
    batch, width, columns = problem.batch_size, problem.width, problem.content_width
    if problem.objective == "sampled":
        return Work(bytes=20 * batch * columns * FLOAT, sigmas=batch)
    scores = batch * n
    rows = (batch * width + n * (width + 2 * columns)) * FLOAT
    passes = 4 if machine.is_cpu else _instructions(problem)[2]  # two starts of a product, sigma's slope, its sum
    if problem.objective == "softmax":  # the sum, the mean change, then the product itself
        flops, sweeps = 2 * scores * (3 * width + 3 * columns), 3
        return Work(
            score_flops=flops, sigmas=sweeps * scores, elementwise=sweeps * passes * scores, bytes=sweeps * rows
        )
    return Work(score_flops=2 * scores * (width + 2 * columns), sigmas=scores, elementwise=passes * scores, bytes=rows)


def _ascent(problem: Problem, machine: Machine, n: int) -> Work:
    """The rows' part of the adversary: coordinate, perturb, and adding what they give."""
    d, columns = problem.embedding_dim, problem.content_width
    if problem.is_graph or problem.at == "encoder":
        moved = _moved(problem, n)
        return moved if machine.is_cpu else replace(moved, elementwise=0.0)
    # g made contiguous (2); perturb reads g, v, t and writes both deltas (5); both are added (6).
    work = Work(
        dense_flops=4 * n * d * columns,
        bytes=(10 * d + 3 * columns) * n * FLOAT,
        elementwise=8 * n * d if machine.is_cpu else 0,
    )
    if not problem.coordinates:
        return work
    # coordinate reads g and writes omega (2); omega is scaled (2), HVP divided (2) and added to g (3).
    return replace(
        work,
        dense_flops=work.dense_flops + 8 * n * d * columns,
        bytes=work.bytes + 9 * n * columns * FLOAT,
        elementwise=work.elementwise + (16 * n * columns if machine.is_cpu else 0),
    )


def _moved(problem: Problem, n: int) -> Work:
    """Rows of both modalities moved: gradients (or noise) made steps (4 a number), which are added (3)."""
    numbers = n * (problem.raw_width if problem.at == "encoder" else 2 * problem.embedding_dim)
    return Work(bytes=7 * numbers * FLOAT, elementwise=4 * numbers)


def _projection(problem: Problem, n: int, phase: PhaseName) -> Work:
    """Raw features to unit rows and back. No gradient goes to the features, unless an adversary may move them."""
    products = [2 * inputs * outputs for inputs, outputs in problem.layers()]  # the visual ones first
    of_first, of_all = products[0] + products[len(problem.visual_hidden) + 1], sum(products)
    # A hidden number is written and read some 16 times: ReLU, LayerNorm and their gradients.
    hidden, features = sum(problem.visual_hidden) + sum(problem.text_hidden), problem.raw_width
    work = Work(
        dense_flops=n * (3 * of_all - of_first),
        bytes=n * (features * (2 + 3 * FLOAT) + 16 * hidden * FLOAT),
    )
    if phase == "clean":
        return work
    # Gradients of the features (written, added up), those that the ascent asks for, and the pass on moved rows.
    flops, floats = work.dense_flops + n * of_first, 2 * features
    if problem.ascends:
        flops, floats = flops + n * of_all, floats + features + 8 * hidden
    if problem.perturbs:
        flops, floats = flops + work.dense_flops, floats + 2 * features + 16 * hidden
    return replace(work, dense_flops=flops, bytes=work.bytes + n * floats * FLOAT)


def _alignment(problem: Problem, ranks: int) -> Work:
    """InfoNCE between the modalities of the batch's items."""
    batch, d = problem.batch_size, problem.embedding_dim
    own = -(-batch // ranks)
    work = _ring(ranks, 2 * batch * 2 * d * FLOAT, calls=2)
    return replace(work, dense_flops=12 * own * batch * d, bytes=2 * 8 * own * batch * FLOAT)


def _instructions(problem: Problem) -> tuple[float, float, float]:
    widths = sorted(width for precision, width in H100_INSTRUCTIONS if precision == problem.score_precision)
    width = next((width for width in widths if width >= problem.width), widths[-1])
    by_users, by_items, hvp = H100_INSTRUCTIONS[problem.score_precision, width]
    beyond = max(1.0, problem.width / width)
    return by_users * beyond, by_items * beyond, hvp * beyond
