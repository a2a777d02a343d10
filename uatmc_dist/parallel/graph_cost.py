"""What MMGCN's graph convolutions cost on one rank: work of a step, and what is kept for its gradients.

A pass forward through the convolutions of one modality does three dense products a layer for each of this rank's u + n
nodes, and multiplies the adjacency with the gathered rows of the other side, both modalities' side by side.

    U, N  users and items    E  training pairs    d  embedding_dim    w  width of what enters a layer
"""

from collections.abc import Iterator

from uatmc_dist.parallel.problem import FLOAT, INDEX, Problem, Work

_SIDES = 2
"""Users receive from items, and items from users."""


def nodes(problem: Problem, ranks: int) -> int:
    """u + n of the largest blocks."""
    return -(-problem.users // ranks) + -(-problem.items // ranks)


def propagation_work(problem: Problem, ranks: int) -> Iterator[tuple[str, Work]]:
    """All passes of a step through the convolutions, in units of one pass forward.

    Backward costs two units of dense products and one of the others; to the projected rows alone, as the adversary
    needs it, one of each. Coordination differentiates that once more: through the products (3), and back (3).
    """
    dense, sparse = (3, 2) if not problem.perturbs else (6, 4)
    if problem.ascends:
        dense, sparse = dense + 1, sparse + 1
    if problem.coordinates:
        dense, sparse = dense + 4, sparse + 3
    dim, rows = problem.embedding_dim, nodes(problem, ranks)
    widths = problem.convolution_widths()
    products = sum(width**2 + width * dim + (width + dim) * dim for width in widths)
    latent = problem.items / ranks * 4 * dim * dim
    # Products and activations written and read: 3 of the layer's width, 6 of d, joined (w + d).
    touched = sum(4 * width + 7 * dim for width in widths)
    yield (
        "convolutions",
        Work(dense_flops=dense * 2 * (rows * products + latent), bytes=sparse * rows * touched * FLOAT),
    )
    edges = problem.interactions / ranks
    # A row of the other side read for each edge, beside its column and its weight; the mean written.
    layers = [sum(widths) for widths in problem.layer_widths()]
    moved = sum(_SIDES * edges * (width * FLOAT + INDEX + FLOAT) + rows * width * FLOAT for width in layers)
    gathered = sum((problem.users + problem.items) * width * FLOAT for width in layers)
    calls = sparse * _SIDES * len(layers) if ranks > 1 else 0
    yield (
        "products with the adjacency",
        Work(
            bytes=sparse * moved,
            ring_bytes=sparse * gathered * (ranks - 1) / ranks,
            collectives=calls,
        ),
    )


def kept_floats(problem: Problem, ranks: int) -> float:
    """float32 numbers that the passes keep for their gradients: for each layer what enters (w), the mean (w), the
    joined row (w + d), and what two activations receive (2 d); X_0 before and after it is scaled; the results."""
    dim = problem.embedding_dim
    by_node = sum(3 * width + 3 * dim for width in problem.convolution_widths()) + 5 * dim + 3 * dim
    passes = 1 + problem.perturbs + 1.5 * problem.coordinates  # coordination keeps gradients as well
    return passes * nodes(problem, ranks) * by_node


def gathered_floats(problem: Problem) -> float:
    """Rows of the widest layer of all users or all items, one side at a time, and their gradient."""
    return 2.0 * max(problem.users, problem.items) * max(map(sum, problem.layer_widths()))


def adjacency_bytes(problem: Problem, ranks: int) -> float:
    """CSR of this rank's rows and of their transpose, for users and for items: column and weight of each edge, offsets
    of this rank's rows and, transposed, of all rows of the other side."""
    edges = 2 * _SIDES * problem.interactions / ranks * (INDEX + FLOAT)
    return edges + INDEX * (nodes(problem, ranks) + problem.users + problem.items)
