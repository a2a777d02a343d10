"""count_above: for each item, the users whose threshold its score passes.

python -m benchmarks.kernels.count_above [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.bpr_all_items import problem
from benchmarks.kernels.floors import ranking
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import count_above


def implementations(sizes: Sizes) -> dict[str, Callable[[], object]]:
    users, items, thresholds, _ = problem(sizes)
    bonus = torch.full_like(thresholds, 0.1)

    def run(name: str) -> Callable[[], object]:
        return lambda: count_above(users, items, thresholds, bonus, implementation=name)  # type: ignore[arg-type]

    def eager(users, items, thresholds, bonus):  # type: ignore[no-untyped-def]
        return (users @ items.T + bonus[:, None] > thresholds[:, None]).sum(0)

    compiled = torch.compile(eager)
    calls: dict[str, Callable[[], object]] = {
        "reference eager": lambda: eager(users, items, thresholds, bonus),
        "torch.compile": lambda: compiled(users, items, thresholds, bonus),
        "tiled": run("tiled"),
    }
    return calls | ({"triton": run("triton")} if sizes.device == "cuda" else {})


PASSES = [Pass("forward", lambda s: ranking(s.users, s.items, s.width, s.itemsize), implementations)]

if __name__ == "__main__":
    main("count_above", PASSES)
