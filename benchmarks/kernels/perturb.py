"""perturb: one ascent step for both modalities, for rows of d = --width / 2; and the content rows after it.

python -m benchmarks.kernels.perturb [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.floors import perturb as work
from benchmarks.kernels.floors import perturbed_content as work_of_content
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import perturb, perturbed_content

_EPSILON = 0.1


def eager(g, w_v, w_t, v, t):  # type: ignore[no-untyped-def]
    def step(direction, rows):  # type: ignore[no-untyped-def]
        length = direction.norm(dim=1, keepdim=True)
        unit = torch.where(length > 0, direction / length, 0.0)
        return _EPSILON * rows.norm(dim=1, keepdim=True) * unit

    return step(g @ w_v, v), step(g @ w_t, t)


def eager_content(g, w_v, w_t, v, t):  # type: ignore[no-untyped-def]
    delta_v, delta_t = eager(g, w_v, w_t, v, t)
    return (v + delta_v) @ w_v.T + (t + delta_t) @ w_t.T


def compare(op, plain):  # type: ignore[no-untyped-def]
    def implementations(sizes: Sizes) -> dict[str, Callable[[], object]]:
        d = sizes.content
        rows = [sizes.normal(sizes.items, d, seed=seed) for seed in (0, 3, 4)]
        inputs = rows[0], sizes.normal(d, d, seed=1), sizes.normal(d, d, seed=2), *rows[1:]

        def run(name: str) -> Callable[[], object]:
            return lambda: op(*inputs, _EPSILON, implementation=name)

        compiled = torch.compile(plain)
        calls: dict[str, Callable[[], object]] = {
            "eager": lambda: plain(*inputs),
            "torch.compile": lambda: compiled(*inputs),
            "tiled": run("tiled"),
        }
        return calls | ({"triton": run("triton")} if sizes.device == "cuda" else {})

    return implementations


PASSES = [
    Pass("perturb", lambda s: work(s.items, s.content, s.itemsize), compare(perturb, eager)),
    Pass(
        "perturbed_content",
        lambda s: work_of_content(s.items, s.content, s.itemsize),
        compare(perturbed_content, eager_content),
    ),
]

if __name__ == "__main__":
    main("perturb", PASSES, by_rows=True)
