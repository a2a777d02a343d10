"""What every shipped kernel configuration compiles to, without a GPU: the table of docs/kernels.md.

python -m benchmarks.kernels.static_report                # prints the table; exits 1 where a kernel does not fit
python -m benchmarks.kernels.static_report --write        # puts it into docs/kernels.md
python -m benchmarks.kernels.static_report --check        # compares with docs/kernels.md

The table carries a stamp of what it was made from: the kernels' sources, the compiler and its own lines. Where that
still fits, --check compiles one configuration of each kernel; otherwise all of them, `seen` only at K = 128.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import triton

from benchmarks.kernels.static import (
    ARCHITECTURES,
    DTYPES,
    TENSOR_INSTRUCTION,
    VARIANTS,
    WIDTHS,
    Compiled,
    compile_variant,
    fits,
    has_seen,
)
from uatmc_kernels.triton._launch_table import TABLE
from uatmc_kernels.triton._launches import Launch

_ROOT = Path(__file__).parents[2]
DOCUMENT = _ROOT / "docs/kernels.md"
BEGIN, END = "<!-- static report: begin -->", "<!-- static report: end -->"
_STAMP = "<!-- made from {} -->"
_CHECKED_WIDTH = 128
_HEADER = (
    "| kernel | arch | width | dtype | tile | KC, KO | hoists | warps | registers | shared KiB | blocks/SM "
    "| LDL+STL | tensor | MUFU/score | instr./score | LDGSTS | with `seen`: LDL+STL; instr./score; LDGSTS |"
)


@dataclass(frozen=True)
class Case:
    variant: str
    architecture: int
    width: int
    dtype: str

    @property
    def launch(self) -> Launch:
        return Launch(*TABLE[self.variant][self.architecture, self.width, self.dtype])


def cases(variants: Sequence[str], architectures: Sequence[int], widths: Sequence[int]) -> Iterator[Case]:
    for variant in variants:
        for architecture in architectures:
            for width in widths:
                for dtype in DTYPES:
                    yield Case(variant, architecture, width, dtype)


def examine(case: Case) -> tuple[Case, Compiled, Compiled | None]:
    """The compiled case, and with a list of entries to leave out where the kernel takes one."""
    variant = VARIANTS[case.variant]
    common = variant, case.launch, case.width, case.dtype, case.architecture
    return (
        case,
        compile_variant(*common, seen=False),
        compile_variant(*common, seen=True) if has_seen(variant) else None,
    )


def examine_plain(case: Case) -> tuple[Case, Compiled, Compiled | None]:
    """The same, the second form only at one width."""
    if case.width == _CHECKED_WIDTH:
        return examine(case)
    variant = VARIANTS[case.variant]
    return case, compile_variant(variant, case.launch, case.width, case.dtype, case.architecture, seen=False), None


def line(case: Case, plain: Compiled, with_seen: Compiled | None) -> str:
    launch = case.launch
    tile = f"{launch.block_owner} x {launch.block_stream}" if launch.block_stream else f"{launch.block_owner} rows"
    tensor = TENSOR_INSTRUCTION[case.architecture]
    scores = plain.scores_per_pass
    return (
        f"| {case.variant} | sm_{case.architecture} | {case.width} | {case.dtype} | {tile} "
        f"| {min(launch.block_k, case.width)}, {min(launch.out_k, case.width)} "
        f"| {_hoists(case)} | {launch.num_warps} "
        f"| {plain.registers} | {plain.shared_memory / 1024:.0f} "
        f"| {plain.blocks_per_multiprocessor(case.architecture)} | {plain.spills} "
        f"| {plain.instructions[tensor]} {tensor} "
        f"| {f'{plain.special_per_pass / scores:.2f}' if scores else '-'} "
        f"| {_issued(plain)} | {plain.copies_ahead} "
        f"| {f'{with_seen.spills}; {_issued(with_seen)}; {with_seen.copies_ahead}' if with_seen else '-'} |"
    )


def _issued(compiled: Compiled) -> str:
    """Instructions a score."""
    return f"{compiled.issued_per_pass / compiled.scores_per_pass:.1f}" if compiled.scores_per_pass else "-"


def _hoists(case: Case) -> str:
    if not VARIANTS[case.variant].hoists:
        return "-"
    return "yes" if case.launch.hoist else "no"


def without_seen(row: str) -> str:
    return row.rsplit("|", 2)[0]


def stamp(lines: Sequence[str]) -> str:
    """Of the table's lines and all that decides them."""
    sources = sorted((_ROOT / "kernels/uatmc_kernels/triton").glob("*.py"))
    sources += [_ROOT / "benchmarks/kernels" / name for name in ("static.py", "static_report.py")]
    contents = [triton.__version__, *(file.read_text(encoding="utf-8") for file in sources), *lines]
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()[:16]


def sample() -> list[Case]:
    """One case of each kernel, architectures, widths and dtypes in turn."""
    of_variant = (list(cases((variant,), tuple(ARCHITECTURES), WIDTHS)) for variant in VARIANTS)
    return [every[7 * index % len(every)] for index, every in enumerate(of_variant)]


def report(check: bool, every: Sequence[Case]) -> tuple[list[str], int]:
    """The table's lines and how many cases do not fit their architecture. Compiles on all cores."""
    lines, misfits = [_HEADER, "|" + " --- |" * (_HEADER.count("|") - 1)], 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(examine_plain if check else examine, every, chunksize=4)
        for done, (case, plain, with_seen) in enumerate(results, start=1):
            lines.append(line(case, plain, with_seen))
            misfits += not all(fits(compiled, case.architecture) for compiled in (plain, with_seen) if compiled)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(every)} configurations compiled", end="", file=sys.stderr, flush=True)
    return lines, misfits


def documented_table() -> tuple[str, list[str]]:
    """The stamp and the lines of the table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    made_from, _, *lines = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    return made_from, lines


def differences(lines: list[str], documented: list[str]) -> list[str]:
    """Lines of a `check` that the document does not have."""
    whole, plain = set(documented), {without_seen(row) for row in documented}
    both = lambda row: row.split("|")[3].strip() in ("width", "---", str(_CHECKED_WIDTH))  # noqa: E731
    return [row for row in lines if (row not in whole if both(row) else without_seen(row) not in plain)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/kernels.md")
    parser.add_argument("--check", action="store_true", help="exit 1 where docs/kernels.md says something else")
    arguments = parser.parse_args()
    made_from, documented = documented_table()
    is_fresh = arguments.check and made_from == _STAMP.format(stamp(documented))
    every = sample() if is_fresh else list(cases(tuple(VARIANTS), tuple(ARCHITECTURES), WIDTHS))
    lines, misfits = report(arguments.check, every)
    print(
        f"\n{misfits} of {len(lines) - 2} configurations spill, lack tensor instructions or copy no tile ahead",
        file=sys.stderr,
    )
    if arguments.check:
        different = differences(lines, documented)
        print("\n".join(different) or "docs/kernels.md is what the launches compile to")
        raise SystemExit(bool(misfits or different))
    table = "\n".join(lines)
    made_from = _STAMP.format(stamp(lines))
    print(table)
    if arguments.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOCUMENT.write_text(f"{text[:start]}\n\n{made_from}\n\n{table}\n\n{text[stop:]}", encoding="utf-8")
    raise SystemExit(misfits > 0)


if __name__ == "__main__":
    main()
