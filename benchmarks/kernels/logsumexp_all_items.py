"""logsumexp_all_items: the softmax loss's heavy part, forward, with gradients, and with its HVP in the content columns.

python -m benchmarks.kernels.logsumexp_all_items [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.bpr_all_items import problem
from benchmarks.kernels.floors import hvp, logsumexp, logsumexp_and_gradients
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import logsumexp_all_items, softmax_all_items_hvp, softmax_mean_change

Call = Callable[[], object]


def names(sizes: Sizes) -> dict[str, str]:
    known = {"reference eager": "reference", "tiled": "tiled"}
    return known | {"triton": "triton"} if sizes.device == "cuda" else known


def forward(sizes: Sizes) -> dict[str, Call]:
    users, items, _, skip = problem(sizes)

    def run(name: str) -> Call:
        def call() -> object:
            with torch.no_grad():
                return logsumexp_all_items(users, items, skip, implementation=name)  # type: ignore[arg-type]

        return call

    return {label: run(name) for label, name in names(sizes).items()}


def forward_backward(sizes: Sizes) -> dict[str, Call]:
    users, items, _, skip = problem(sizes)

    def run(name: str) -> Call:
        def call() -> object:
            leaves = users.detach().requires_grad_(), items.detach().requires_grad_()
            total = logsumexp_all_items(*leaves, skip, implementation=name).sum()  # type: ignore[arg-type]
            return torch.autograd.grad(total, leaves)

        return call

    return {label: run(name) for label, name in names(sizes).items()}


def product(sizes: Sizes) -> dict[str, Call]:
    """The HVP alone: mean change and product, from a log-sum-exp that is at hand."""
    users, items, _, skip = problem(sizes)
    columns = slice(sizes.width - sizes.content, sizes.width)
    tangent = sizes.normal(sizes.items, sizes.content, seed=3)
    total = logsumexp_all_items(users, items, skip)

    def run(name: str) -> Call:
        def call() -> object:
            given = users, items, total, skip, tangent
            mean = softmax_mean_change(*given, columns, implementation=name)  # type: ignore[arg-type]
            return softmax_all_items_hvp(*given, mean, columns, implementation=name)  # type: ignore[arg-type]

        return call

    return {label: run(name) for label, name in names(sizes).items()}


PASSES = [
    Pass("forward", lambda s: logsumexp(s.users, s.items, s.width, s.itemsize), forward),
    Pass(
        "forward, backward", lambda s: logsumexp_and_gradients(s.users, s.items, s.width, s.itemsize), forward_backward
    ),
    Pass("HVP", lambda s: hvp(s.users, s.items, s.width, s.content, s.itemsize), product),
]

if __name__ == "__main__":
    main("logsumexp_all_items", PASSES)
