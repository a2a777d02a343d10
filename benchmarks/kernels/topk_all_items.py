"""topk_all_items: the 50 best items of each user.

python -m benchmarks.kernels.topk_all_items [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.bpr_all_items import problem
from benchmarks.kernels.floors import ranking
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import topk_all_items

_K = 50


def implementations(sizes: Sizes) -> dict[str, Callable[[], object]]:
    users, items, *_ = problem(sizes)

    def run(name: str) -> Callable[[], object]:
        return lambda: topk_all_items(users, items, _K, implementation=name)  # type: ignore[arg-type]

    def eager(users: torch.Tensor, items: torch.Tensor) -> object:
        return (users @ items.T).topk(_K, dim=1)

    compiled = torch.compile(eager)
    calls: dict[str, Callable[[], object]] = {
        "reference eager": lambda: eager(users, items),
        "torch.compile": lambda: compiled(users, items),
        "tiled": run("tiled"),
    }
    return calls | ({"triton": run("triton")} if sizes.device == "cuda" else {})


PASSES = [Pass("forward", lambda s: ranking(s.users, s.items, s.width, s.itemsize), implementations)]

if __name__ == "__main__":
    main("topk_all_items", PASSES)
