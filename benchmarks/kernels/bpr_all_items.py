"""bpr_all_items: loss; loss and gradients; and these with second-order gradients by double backward.

python -m benchmarks.kernels.bpr_all_items [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.kernels.floors import Work, hvp, loss, loss_and_gradients
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import bpr_all_items, bpr_all_items_hvp

_CHUNK = 8192
Loss = Callable[..., torch.Tensor]


def problem(sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """users, items, positive scores, skipped items."""
    generator = torch.Generator(sizes.device).manual_seed(1)
    skip = torch.randint(sizes.items, (sizes.users,), generator=generator, device=sizes.device)
    users, items = sizes.normal(sizes.users, sizes.width), sizes.normal(sizes.items, sizes.width, seed=2)
    return users, items, (users * items[skip]).sum(1), skip


def with_implementation(name: str) -> Loss:
    return lambda *inputs: bpr_all_items(*inputs, implementation=name)


def in_checkpointed_chunks(users, items, positive, skip):  # type: ignore[no-untyped-def]
    """Eager PyTorch with flat memory: every chunk of items is computed again in the backward pass."""
    total = torch.zeros(len(users), device=users.device)
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        here = torch.where((skip >= start) & (skip < start + len(chunk)), skip - start, -1)
        total = total + checkpoint(with_implementation("reference"), users, chunk, positive, here, use_reentrant=False)
    return total


def implementations(sizes: Sizes) -> dict[str, Loss]:
    known: dict[str, Loss] = {
        "reference eager": with_implementation("reference"),
        "eager, checkpointed chunks": in_checkpointed_chunks,
        "torch.compile": torch.compile(_plain),
        "tiled": with_implementation("tiled"),
    }
    if sizes.device == "cuda":
        known |= {"triton": with_implementation("triton"), "triton_atomic": with_implementation("triton_atomic")}
    return known


def _plain(users, items, positive, skip):  # type: ignore[no-untyped-def]
    """The reference without its list of entries left out, whose length a compiler cannot know."""
    losses = torch.nn.functional.softplus(users.float() @ items.float().T - positive.float()[:, None], threshold=50.0)
    kept = torch.arange(len(items), device=items.device)[None, :] != skip[:, None]
    return (losses * kept).sum(1)


def forward(sizes: Sizes) -> dict[str, Callable[[], object]]:
    inputs = problem(sizes)

    def run(function: Loss) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return function(*inputs)

        return call

    return {name: run(function) for name, function in implementations(sizes).items() if "checkpoint" not in name}


def forward_backward(sizes: Sizes) -> dict[str, Callable[[], object]]:
    *tensors, skip = problem(sizes)

    def run(function: Loss) -> Callable[[], object]:
        def call() -> object:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            return torch.autograd.grad(function(*leaves, skip).sum(), leaves)

        return call

    return {name: run(function) for name, function in implementations(sizes).items()}


def with_hvp(sizes: Sizes) -> dict[str, Callable[[], object]]:
    """Loss, gradients and the Hessian-vector product in the content columns: one coordinated adversary's need."""
    *tensors, skip = problem(sizes)
    columns = slice(sizes.width - sizes.content, sizes.width)
    tangent, tangent_positive = sizes.normal(sizes.items, sizes.content, seed=3), sizes.normal(sizes.users, seed=4)

    def by_autograd(function: Loss) -> Callable[[], object]:
        def call() -> object:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            first = torch.autograd.grad(function(*leaves, skip).sum(), leaves, create_graph=True)
            along = (first[1][:, columns] * tangent).sum() + (first[2] * tangent_positive).sum()
            return first, torch.autograd.grad(along, leaves[1:])

        return call

    def closed(name: str) -> Callable[[], object]:
        def call() -> object:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            first = torch.autograd.grad(with_implementation(name)(*leaves, skip).sum(), leaves)
            return first, bpr_all_items_hvp(*tensors, skip, tangent, tangent_positive, columns, implementation=name)

        return call

    known = implementations(sizes)
    by_graph = ("reference eager", "eager, checkpointed chunks", "torch.compile")
    calls = {name: by_autograd(known[name]) for name in by_graph}
    calls |= {name: closed(name) for name in ("tiled", "triton") if name in known}
    # The same through the op's own second derivative, which serves any model.
    return calls | {
        f"{name}, double backward": by_autograd(known[name]) for name in ("tiled", "triton") if name in known
    }


def _loss(sizes: Sizes) -> Work:
    return loss(sizes.users, sizes.items, sizes.width, sizes.itemsize)


def _gradients(sizes: Sizes) -> Work:
    return loss_and_gradients(sizes.users, sizes.items, sizes.width, sizes.itemsize)


def _with_hvp(sizes: Sizes) -> Work:
    return _gradients(sizes) + hvp(sizes.users, sizes.items, sizes.width, sizes.content, sizes.itemsize)


PASSES = [
    Pass("forward", _loss, forward),
    Pass("forward, backward", _gradients, forward_backward),
    Pass("forward, backward, HVP", _with_hvp, with_hvp),
]

if __name__ == "__main__":
    main("bpr_all_items", PASSES)
