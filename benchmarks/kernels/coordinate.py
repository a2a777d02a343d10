"""coordinate: projections, alignment and its gradient, for rows of d = --width / 2.

python -m benchmarks.kernels.coordinate [--device cuda] [--dtype bf16]
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.floors import coordinate as work
from benchmarks.kernels.harness import Pass, Sizes, main
from uatmc_kernels import coordinate


def eager(g, w_v, w_t):  # type: ignore[no-untyped-def]
    """The closed form of docs/algorithm.md, section 4.1, as one would write it."""
    visual, text = g @ w_v, g @ w_t
    visual_length, text_length = visual.norm(dim=1, keepdim=True), text.norm(dim=1, keepdim=True)
    kept = (visual_length > 0) & (text_length > 0)
    visual_unit = torch.where(kept, visual / visual_length, 0.0)
    text_unit = torch.where(kept, text / text_length, 0.0)
    cosine = (visual_unit * text_unit).sum(1, keepdim=True)
    alpha = torch.where(kept, (text_unit - cosine * visual_unit) / visual_length, 0.0)
    tau = torch.where(kept, (visual_unit - cosine * text_unit) / text_length, 0.0)
    return cosine.mean(), (alpha @ w_v.T + tau @ w_t.T) / len(g)


def implementations(sizes: Sizes) -> dict[str, Callable[[], object]]:
    d = sizes.content
    inputs = sizes.normal(sizes.items, d), sizes.normal(d, d, seed=1), sizes.normal(d, d, seed=2)

    def run(name: str) -> Callable[[], object]:
        return lambda: coordinate(*inputs, implementation=name)  # type: ignore[arg-type]

    compiled = torch.compile(eager)
    calls: dict[str, Callable[[], object]] = {
        "eager": lambda: eager(*inputs),
        "reference eager (double differentiation)": run("reference"),
        "torch.compile": lambda: compiled(*inputs),
        "tiled": run("tiled"),
    }
    return calls | ({"triton": run("triton")} if sizes.device == "cuda" else {})


PASSES = [Pass("forward", lambda s: work(s.items, s.content, s.itemsize), implementations)]

if __name__ == "__main__":
    main("coordinate", PASSES, by_rows=True)
