"""Extra memory of one coordinated full-catalog step as the catalog grows: linear in N, without a B x N term.

python -m benchmarks.memory
"""

import argparse
import multiprocessing

from benchmarks.common import append, extra_memory
from benchmarks.problem import AdversarialStep

PAIRS, DIM = 2048, 64


def measure(num_items: int) -> float:
    step = AdversarialStep(PAIRS, num_items, DIM)
    return extra_memory(step.ours)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    before = None
    for num_items in (10_000, 40_000, 160_000):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process: no memory to be used again
            memory_mb = pool.apply(measure, (num_items,))
        append("memory", "ours", {"B": PAIRS, "N": num_items, "d": DIM}, None, memory_mb)
        one_matrix = PAIRS * num_items * 4 / 2**20
        print(f"N = {num_items:>7,}: {memory_mb:8.1f} MB extra; one B x N matrix would be {one_matrix:8.1f} MB", end="")
        if before is not None:
            growth = (memory_mb - before[1]) / (num_items - before[0]) * 1024
            print(f"; {growth:.2f} kB for each item more (K = {2 * DIM} floats are {2 * DIM * 4 / 1024} kB)", end="")
        print()
        before = (num_items, memory_mb)


if __name__ == "__main__":
    main()
