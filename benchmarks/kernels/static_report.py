"""What every shipped kernel configuration compiles to, without a GPU: the table of docs/kernels.md.

python -m benchmarks.kernels.static_report                # prints the table; exits 1 where a kernel does not fit
python -m benchmarks.kernels.static_report --write        # puts it into docs/kernels.md
python -m benchmarks.kernels.static_report --check        # compares with docs/kernels.md, in half the time: `seen` only
                                                          # at K = 128
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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

DOCUMENT = Path(__file__).parents[2] / "docs/kernels.md"
BEGIN, END = "<!-- static report: begin -->", "<!-- static report: end -->"
_CHECKED_WIDTH = 128
_HEADER = (
    "| kernel | arch | width | dtype | tile | KC, KO | warps | registers | shared KiB | blocks/SM "
    "| LDL+STL | tensor | MUFU/score | instr./score | with `seen`: LDL+STL |"
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
        f"| {min(launch.block_k, case.width)}, {min(launch.out_k, case.width)} | {launch.num_warps} "
        f"| {plain.registers} | {plain.shared_memory / 1024:.0f} "
        f"| {plain.blocks_per_multiprocessor(case.architecture)} | {plain.spills} "
        f"| {plain.instructions[tensor]} {tensor} "
        f"| {f'{plain.special_per_pass / scores:.2f}' if scores else '-'} "
        f"| {f'{plain.issued_per_pass / scores:.1f}' if scores else '-'} "
        f"| {with_seen.spills if with_seen else '-'} |"
    )


def without_seen(row: str) -> str:
    return row.rsplit("|", 2)[0]


def report(check: bool) -> tuple[list[str], int]:
    """The table's lines and how many cases do not fit their architecture. Compiles on all cores."""
    lines, misfits = [_HEADER, "|" + " --- |" * (_HEADER.count("|") - 1)], 0
    every = list(cases(tuple(VARIANTS), tuple(ARCHITECTURES), WIDTHS))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(examine_plain if check else examine, every, chunksize=4)
        for done, (case, plain, with_seen) in enumerate(results, start=1):
            lines.append(line(case, plain, with_seen))
            misfits += not all(fits(compiled, case.architecture) for compiled in (plain, with_seen) if compiled)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(every)} configurations compiled", end="", file=sys.stderr, flush=True)
    return lines, misfits


def differences(lines: list[str]) -> list[str]:
    """Lines of a `check` that the document does not have."""
    text = DOCUMENT.read_text(encoding="utf-8")
    documented = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    whole, plain = set(documented), {without_seen(row) for row in documented}
    both = lambda row: row.split("|")[3].strip() in ("width", "---", str(_CHECKED_WIDTH))  # noqa: E731
    return [row for row in lines if (row not in whole if both(row) else without_seen(row) not in plain)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/kernels.md")
    parser.add_argument("--check", action="store_true", help="exit 1 where docs/kernels.md says something else")
    arguments = parser.parse_args()
    lines, misfits = report(arguments.check)
    print(f"\n{misfits} of {len(lines) - 2} configurations spill or lack tensor instructions", file=sys.stderr)
    if arguments.check:
        different = differences(lines)
        print("\n".join(different) or "docs/kernels.md is what the launches compile to")
        raise SystemExit(bool(misfits or different))
    table = "\n".join(lines)
    print(table)
    if arguments.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOCUMENT.write_text(f"{text[:start]}\n\n{table}\n\n{text[stop:]}", encoding="utf-8")
    raise SystemExit(misfits > 0)


if __name__ == "__main__":
    main()
