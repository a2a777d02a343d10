"""bpr_all_items_hvp: the Hessian-vector product alone.

python -m benchmarks.kernels.bpr_all_items_hvp [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

from benchmarks.kernels.bpr_all_items import problem
from benchmarks.kernels.floors import hvp
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import bpr_all_items_hvp


def implementations(sizes: Sizes) -> dict[str, Callable[[], object]]:
    inputs = problem(sizes)
    tangent, tangent_positive = sizes.normal(sizes.items, sizes.content, seed=3), sizes.normal(sizes.users, seed=4)
    columns = slice(sizes.width - sizes.content, sizes.width)

    def run(name: str) -> Callable[[], object]:
        return lambda: bpr_all_items_hvp(*inputs, tangent, tangent_positive, columns, implementation=name)  # type: ignore[arg-type]

    names = {"reference eager": "reference", "tiled": "tiled"} | (
        {"triton": "triton"} if sizes.device == "cuda" else {}
    )
    return {label: run(name) for label, name in names.items()}


PASSES = [
    Pass("HVP", lambda s: hvp(s.users, s.items, s.width, s.content, s.itemsize), implementations),
]

if __name__ == "__main__":
    main("bpr_all_items_hvp", PASSES)
