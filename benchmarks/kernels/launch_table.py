"""Makes kernels/uatmc_kernels/triton/_launch_table.py: a launch for every kernel, architecture, width and dtype.

python -m benchmarks.kernels.launch_table                   # no GPU needed: keeps what fits, replaces the rest
python -m benchmarks.kernels.launch_table --anew            # and what another one is leaner than: hours
python -m benchmarks.kernels.launch_table --device cuda     # times the leanest that fit on this GPU, keeps the fastest

A launch fits where it compiles without spills to the architecture's tensor instructions, with tiles copied ahead, with
and without a list of entries to leave out. Without a GPU the one is taken whose scores keep a multiprocessor busy for
the shortest time, by its instructions, by its products on the tensor cores or by what it copies from the cache,
whichever is most; of equals the one with larger tiles.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from functools import partial
from itertools import starmap
from pathlib import Path

import torch

from benchmarks.kernels.floors import GPUS, Work
from benchmarks.kernels.static import ARCHITECTURES, VARIANTS, WIDTHS, compile_variant, fits, has_seen
from benchmarks.kernels.static_report import Case, cases
from uatmc_dist.whole_files import replacing
from uatmc_kernels.triton import _launch_table
from uatmc_kernels.triton._launches import Launch, _device

PATH = Path(_launch_table.__file__)
_HEADER = '''"""Launches by (architecture, width, dtype), made by `python -m benchmarks.kernels.launch_table`.

Each entry: owners of a tile, rows of the stream in a tile, columns of one product, columns of one output slice,
warps, stages, whether what can be is computed once before the loop. The width is K for the score passes, d for the
kernels that work by rows. Every entry compiles without spills to its architecture's tensor instructions
(docs/kernels.md).
"""

TABLE: dict[str, dict[tuple[int, int, str], tuple[int, int, int, int, int, int, bool]]] = {
'''
_BY_ROWS = ("coordinate", "perturb", "perturbed_content")
_WITHOUT_SLICES = ("loss", "logsumexp", "softmax_change", "topk_64", "topk_128", "count_above")
_GIVE_UP = Launch(16, 16, 16, 16, 4, 2, hoist=False)
_LEANER = 0.97
# A copy of 16 bytes for each lane, in instructions: a multiprocessor issues 128 of them a clock, and an A100's cache
# gives 108 multiprocessors 5,120 bytes (NVIDIA's whitepaper; it says nothing for later ones).
_COPY = 16 * 128 / (5120 / 108)
_TIMED = 6
"""Each is compiled anew for the GPU, which takes seconds."""


# Accumulators of a thread, in registers, beyond which no kernel was seen to compile without spills. float32 goes as
# two parts, which take registers beside their operands.
_MOST_ACCUMULATORS = {"bf16": 176, "fp32": 96}


# Fewer owners than columns of the output: on sm_80 each warp then has columns of a tile to itself, instead of owners,
# and splits the float32 numbers of these alone.
_FEW_OWNERS = [(32, 128, 4), (32, 64, 4)]


def candidates(variant: str, width: int, dtype: str) -> Iterator[Launch]:
    """What may fit, from what reuses most of a loaded tile to what needs least of everything."""
    for launch in _shapes(variant, width):
        projections = 2 * launch.block_k if variant in _BY_ROWS else launch.block_stream
        slice_columns = 0 if variant in _WITHOUT_SLICES else launch.out_k
        accumulators = launch.block_owner * (projections + slice_columns) / (32 * launch.num_warps)
        if accumulators <= _MOST_ACCUMULATORS[dtype]:
            yield launch


def _shapes(variant: str, width: int) -> Iterator[Launch]:
    slices = [width] if variant in _WITHOUT_SLICES else [size for size in (256, 128, 64, 32) if size <= width]
    products = [size for size in (256, 128, 64, 32) if size <= width]
    if variant in _BY_ROWS:
        shapes = [(128, 0, 8), (64, 0, 4), (64, 0, 8)]
    elif variant.startswith(("second_order", "softmax_second", "softmax_hvp")):
        shapes = [(128, 64, 8), (64, 128, 8), (64, 64, 4), (128, 32, 8), (64, 64, 8), (64, 32, 4), (64, 32, 8)]
        shapes += [(128, 16, 8), (64, 16, 4), (64, 16, 8)]  # narrow, so that a program makes all columns of the output
        shapes += _FEW_OWNERS
    else:
        shapes = [
            (256, 64, 8),
            (128, 128, 8),
            (128, 64, 4),
            (64, 128, 4),
            (64, 128, 8),
            (128, 64, 8),
            (64, 64, 4),
            (128, 32, 8),
            (64, 32, 4),
            (64, 64, 8),
            (64, 32, 8),
            (128, 16, 8),
            (64, 16, 4),
            (64, 16, 8),
            *_FEW_OWNERS,
        ]
    for out_k in slices:
        for block_owner, block_stream, num_warps in shapes:
            for block_k in products:
                for hoist in (True, False) if VARIANTS[variant].hoists else (True,):
                    yield Launch(block_owner, block_stream, block_k, out_k, num_warps, 2, hoist)
    for out_k, block_k in ((32, 32), (32, 16), (16, 16)):
        yield Launch(64, 0 if variant in _BY_ROWS else 16, block_k, out_k, 4, 2, hoist=True)


def cost(case: Case, launch: Launch) -> tuple[float, float] | None:
    """Of a score in all slices of the output, in instructions of a lane: (what keeps a multiprocessor busy, all that it
    issues); 0 where there are no scores, None where the launch does not fit."""
    variant = VARIANTS[case.variant]
    of_output = case.width // 2 if variant.of_content else case.width
    slices = 1 if case.variant in _WITHOUT_SLICES else max(1, of_output // launch.out_k)
    issued, copied = 0.0, 0.0
    for seen in (False, True) if has_seen(variant) else (False,):
        try:
            compiled = compile_variant(variant, launch, case.width, case.dtype, case.architecture, seen)
        except Exception:  # a shape the compiler refuses is one that does not fit
            return None
        if not fits(compiled, case.architecture):
            return None
        if compiled.scores_per_pass:
            issued = max(issued, slices * compiled.issued_per_pass / compiled.scores_per_pass)
            copied = max(copied, slices * _COPY * compiled.copies_per_pass / compiled.scores_per_pass)
    return max(issued, copied, _products(case, slices)) if issued else 0.0, issued


def _products(case: Case, slices: int) -> float:
    """The time of a score's products, at least (each slice makes the score anew, and its share of the output), in
    instructions: a multiprocessor issues 128 of them and 16 special functions a clock."""
    gpu = GPUS[ARCHITECTURES[case.architecture]]
    products = slices if case.variant in _WITHOUT_SLICES else slices + 1
    work = Work(bytes=0, flops=2 * products * case.width, float32=VARIANTS[case.variant].float32)
    return gpu.floor(work, case.dtype) * gpu.special * 128 / 16


def leanest(case: Case, anew: bool) -> tuple[Case, Launch | None]:
    """What the table has, where it fits; else what costs least. `anew`: that as well where it costs less by 3 %, or
    as much with 3 % fewer instructions."""
    entry = _launch_table.TABLE.get(case.variant, {}).get((case.architecture, case.width, case.dtype))
    present = None if entry is None else Launch(*entry)
    of_present = None if present is None else cost(case, present)
    if of_present is not None and not anew:
        return case, present
    if of_present is None:
        return case, next(iter(_costs(case)), None)
    return case, next((launch for launch, each in _costs(case).items() if _is_leaner(each, of_present)), present)


def _is_leaner(cost: tuple[float, float], other: tuple[float, float]) -> bool:
    """By 3 %, and not for the cache's sake alone with 3 % more instructions: its rate is an A100's."""
    is_less = cost[0] < _LEANER * other[0] or (cost[0] <= other[0] and cost[1] < _LEANER * other[1])
    return is_less and _LEANER * cost[1] <= other[1]


def by_cost(case: Case) -> tuple[Case, list[Launch]]:
    """All that fit, the leanest first, of equals the largest tiles."""
    return case, list(_costs(case))


def _costs(case: Case) -> dict[Launch, tuple[float, float]]:
    """Of all that fit, the leanest first, of equals the largest tiles."""
    launches = candidates(case.variant, case.width, case.dtype)
    fitting = [(launch, each) for launch in launches if (each := cost(case, launch)) is not None]
    return dict(sorted(fitting, key=lambda pair: pair[1][0]))


def fastest(case: Case, fitting: list[Launch]) -> tuple[Case, Launch | None]:
    """On this GPU, of the leanest that fit and what the table has."""
    from triton.testing import do_bench

    run = _runner(case)
    entry = case.architecture, case.width, case.dtype
    present = Launch(*_launch_table.TABLE[case.variant][entry])
    best: tuple[float, Launch | None] = float("inf"), None
    for launch in dict.fromkeys([present, *fitting[:_TIMED]]):
        _launch_table.TABLE[case.variant][entry] = astuple(launch)
        best = min(best, (do_bench(run), launch), key=lambda pair: pair[0])
    return case, best[1]


def _runner(case: Case) -> Callable[[], object]:
    """One call of the op that launches this variant, on a problem of the benchmarks' size."""
    import uatmc_kernels.triton as kernels
    from uatmc_kernels._dispatch import ScorePass
    from uatmc_kernels.triton.logsumexp_all_items import sweep as softmax_sweep

    generator = torch.Generator("cuda").manual_seed(0)
    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float32
    num_users, num_items, width = 2048, 65_536, case.width
    normal = lambda *shape: torch.randn(shape, generator=generator, device="cuda").to(dtype)  # noqa: E731
    users, items, positive = normal(num_users, width), normal(num_items, width), normal(num_users)
    skip = torch.randint(num_items, (num_users,), generator=generator, device="cuda")
    scores = ScorePass(users, items, positive, skip, None)
    g, w, rows = normal(num_items * 16, width), normal(width, width), normal(num_items * 16, width)
    half, content = items[:, width // 2 :], users[:, width // 2 :]
    return {
        "loss": lambda: kernels.bpr_loss(scores),
        "loss_and_user_gradients": lambda: kernels.bpr_all_items._sweep("loss_and_user_gradients", scores),
        "item_gradients": lambda: kernels.bpr_item_gradients(scores, None),
        "atomic": lambda: kernels.bpr_loss_and_gradients_atomic(scores),
        "second_order_of_users": lambda: kernels.bpr_second_order(positive, scores, (users, items, positive)),
        "second_order_of_items": lambda: kernels.bpr_second_order(positive, scores, (users, items, positive)),
        "hvp": lambda: kernels.bpr_all_items_hvp(scores, half, positive, slice(width // 2, width)),
        "logsumexp": lambda: kernels.logsumexp(scores),
        "softmax_of_users": lambda: softmax_sweep("softmax_of_users", scores),
        "softmax_of_items": lambda: softmax_sweep("softmax_of_items", scores, weights_B=positive),
        "softmax_change": lambda: softmax_sweep("softmax_change", scores, change=(users, items)),
        "softmax_hvp": lambda: softmax_sweep("softmax_hvp", scores, change=(content, half), mean_B=positive),
        "softmax_second_of_users": lambda: softmax_sweep(
            "softmax_second_of_users", scores, items, None, (users, items), positive
        ),
        "softmax_second_of_items": lambda: softmax_sweep(
            "softmax_second_of_items", scores, users, positive, (users, items), positive
        ),
        "coordinate": lambda: kernels.coordinate(g, w, w),
        "perturb": lambda: kernels.perturb(g, w, w, rows, rows, 0.1, "l2"),
        "perturbed_content": lambda: kernels.perturbed_content(g, w, w, rows, rows, None, 0.1, "l2"),
        "topk_64": lambda: kernels.topk_all_items(users, items, 50, None),
        "topk_128": lambda: kernels.topk_all_items(users, items, 100, None),
        "count_above": lambda: kernels.count_above(users, items, positive, positive[:, None]),
    }[case.variant]


def write(table: dict[Case, Launch]) -> None:
    lines = [_HEADER]
    for variant in VARIANTS:
        lines.append(f'    "{variant}": {{\n')
        for case, launch in table.items():
            if case.variant == variant:
                entry = f'({case.architecture}, {case.width}, "{case.dtype}")'
                lines.append(f"        {entry}: {astuple(launch)},\n")
        lines.append("    },\n")
    with replacing(PATH) as unfinished:  # the kernels import it
        unfinished.write_text("".join([*lines, "}\n"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--anew", action="store_true", help="look for leaner launches than those that fit, too")
    parser.add_argument("--kernels", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS), metavar="KERNEL")
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=WIDTHS, metavar="WIDTH")
    arguments = parser.parse_args()
    table = {
        case: Launch(*entry)
        for case in cases(tuple(VARIANTS), tuple(ARCHITECTURES), WIDTHS)
        if (entry := _launch_table.TABLE.get(case.variant, {}).get((case.architecture, case.width, case.dtype)))
    }
    # Not forked: a process that has opened a GPU must not be.
    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))
    if arguments.device == "cuda":
        architecture, _ = _device(torch.cuda.current_device())
        chosen = cases(arguments.kernels, (architecture,), arguments.widths)
        results: Iterator[tuple[Case, Launch | None]] = starmap(fastest, pool.map(by_cost, chosen))
    else:
        looked = partial(leanest, anew=arguments.anew)
        results = pool.map(looked, cases(arguments.kernels, tuple(ARCHITECTURES), arguments.widths))
    unfit = 0
    for done, (case, launch) in enumerate(results, start=1):
        if sys.stderr.isatty():
            print(f"\r{done} cases looked at", end="", file=sys.stderr, flush=True)
        changed = table.get(case) != launch
        unfit += launch is None
        table[case] = launch or _GIVE_UP
        if changed:
            print(case, "->", launch or "nothing fits", flush=True)
            write(
                {
                    known: table[known]
                    for known in cases(tuple(VARIANTS), tuple(ARCHITECTURES), WIDTHS)
                    if known in table
                }
            )
    print(f"{unfit} of {len(table)} cases have no launch that fits", file=sys.stderr)
    raise SystemExit(unfit > 0)


if __name__ == "__main__":
    main()
