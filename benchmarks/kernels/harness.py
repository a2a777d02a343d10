"""Runs one op's implementations over sizes, appends to the CSV, draws the plot.

Every script of this folder describes its op as passes; each pass gives the implementations it can compare on one
problem. What a machine cannot run is said, not silently dropped.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import RESULTS, append, device_name, extra_memory, quantile
from benchmarks.kernels.floors import Machine, Work, this_machine

PLOTS = RESULTS.parent / "plots"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MATRICES_EAGER = 12
"""B x N matrices that eager PyTorch holds at once in a double backward, roughly: what a size is refused for."""


@dataclass(frozen=True)
class Sizes:
    users: int
    items: int
    width: int
    """K of the score passes; the content width d is its half."""
    device: str
    dtype: str

    @property
    def content(self) -> int:
        return self.width // 2

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    def normal(self, *shape: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).mul_(0.3).to(DTYPES[self.dtype])


@dataclass(frozen=True)
class Pass:
    """One column of an op's benchmark: what is timed, and the least it could take."""

    name: str
    work: Callable[[Sizes], Work]
    implementations: Callable[[Sizes], dict[str, Callable[[], object]]]
    """By name; `reference eager` and others that materialise all scores are skipped where memory would not do."""


def main(op: str, passes: list[Pass], by_rows: bool = False) -> None:
    """Command line of one op. `by_rows`: the op has no users, and nothing of size B x N to hold."""
    parser = argparse.ArgumentParser(description=f"Microbenchmark of {op}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--items", type=int, nargs="+", help="N (default: 1,000 to 1,000,000; 10,000,000 on a GPU)")
    parser.add_argument("--users", type=int, default=2048, help="B")
    parser.add_argument("--width", type=int, default=128, help="K = 2 d")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each measurement, at least 3 runs")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU here")
    items = arguments.items or [1000, 7050, 30_000, 100_000, 1_000_000] + [10_000_000] * (arguments.device == "cuda")
    machine = this_machine(arguments.device)
    print(f"{op} on {device_name(arguments.device)}, {arguments.dtype}")
    if machine is None:
        print("left out: the fraction of the floor (this GPU's rates are not in benchmarks/kernels/floors.py)")
    if arguments.device == "cpu":
        print("left out: triton (it needs a GPU; --device cuda)")
    rows: list[tuple[str, str, int, float]] = []
    for num_items in items:
        sizes = Sizes(arguments.users, num_items, arguments.width, arguments.device, arguments.dtype)
        for part in passes:
            rows += _measure(op, part, sizes, machine, arguments.seconds, by_rows)
    _plot(op, rows, f"{device_name(arguments.device)}, {arguments.dtype}")


def _measure(
    op: str, part: Pass, sizes: Sizes, machine: Machine | None, seconds: float, by_rows: bool
) -> list[tuple[str, str, int, float]]:
    rows = []
    floor = None if machine is None else machine.floor(part.work(sizes), sizes.dtype)
    known = (
        {"N": sizes.items, "d": sizes.content} if by_rows else {"B": sizes.users, "N": sizes.items, "K": sizes.width}
    )
    for name, function in part.implementations(sizes).items():
        label = f"{op}, {part.name}, N = {sizes.items:,}: {name}"
        if not by_rows and _holds_all_scores(name) and _too_large(sizes):
            print(f"{label}: left out (its B x N matrices would not fit into memory)")
            continue
        try:
            memory_mb = _extra_memory(function, sizes.device)  # also the warm-up, and the compiler's time
            times = _times(function, sizes.device, seconds)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            print(f"{label}: left out ({str(error).splitlines()[0][:100]} ...)")
            continue
        middle = quantile(times, 0.5)
        fraction = None if floor is None else floor / middle
        append(f"kernels/{op}/{part.name}", name, known, times, memory_mb, fraction, sizes.device)
        share = "" if fraction is None else f", {fraction:.0%} of the floor"
        print(f"{label}: {middle * 1e3:.2f} ms, {memory_mb:.0f} MB extra{share}", flush=True)
        rows.append((part.name, name, sizes.items, middle))
        gc.collect()
    return rows


def _holds_all_scores(name: str) -> bool:
    return name in ("reference eager", "torch.compile")


def _too_large(sizes: Sizes) -> bool:
    needed = _MATRICES_EAGER * 4 * sizes.users * sizes.items
    if sizes.device == "cuda":
        return needed > torch.cuda.mem_get_info()[0]
    return needed > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _extra_memory(function: Callable[[], object], device: str) -> float:
    if device == "cpu":
        function()
        return extra_memory(function)
    function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _times(function: Callable[[], object], device: str, seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def _plot(op: str, rows: list[tuple[str, str, int, float]], subtitle: str) -> Path | None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("left out: the plot (pip install matplotlib)")
        return None
    names = list(dict.fromkeys(part for part, *_ in rows))
    figure = Figure(figsize=(5 * max(len(names), 1), 4), layout="constrained")
    for index, part in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        for implementation in dict.fromkeys(name for row, name, *_ in rows if row == part):
            points = [(n, seconds) for row, name, n, seconds in rows if (row, name) == (part, implementation)]
            axes.loglog(*zip(*points, strict=True), marker="o", label=implementation)
        axes.set(title=part, xlabel="items N", ylabel="median seconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(f"{op} ({subtitle})")
    PLOTS.mkdir(parents=True, exist_ok=True)
    path = PLOTS / f"{op}.png"
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")
    return path
