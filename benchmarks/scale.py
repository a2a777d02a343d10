"""Whole full-catalog uat_mc steps of the trainer as the catalog grows: step time and peak memory are linear in the
number of items, without a B x N or an N x N term. One rank, 20,000 users, features of 64 + 32, batch 512; at the
middle size also twice the batch, which must not move the memory by B x N numbers.

python -m benchmarks.scale
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import append, extra_memory, quantile
from benchmarks.trainer_step import one_step
from uatmc_dist.config import Config
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

CATALOG = {"users": 20_000, "interactions": 200_000, "visual_dim": 64, "text_dim": 32}
SIZES = (10_000, 100_000, 1_000_000)
BATCH = 512


def measure(num_items: int, batch_size: int, repeats: int) -> tuple[list[float], float]:
    """(seconds of each step, MB that a step needs beyond tables, optimiser state and projected features)."""
    world = process_group.join()
    with tempfile.TemporaryDirectory() as folder:
        synthesize(Path(folder) / "catalog", items=num_items, seed=0, **CATALOG)
        config = Config.model_validate(
            {
                "name": "scale",
                "catalog": f"{folder}/catalog",
                "output_dir": folder,
                "model": {"visual_hidden": [64], "text_hidden": [64]},
                "training": {"batch_size": batch_size},
                "adversarial": {"epochs": 1},
            }
        )
        trainer = Trainer(config, world)
        trainer.begin(Position("adversarial"))
        trainer.checkpoints.settle()
        indices = itertools.count()
        step = partial(one_step, trainer, indices)
        memory_mb = extra_memory(step)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    return seconds, memory_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[tuple[int, int, float, float]] = []
    for num_items, batch_size in [*((size, BATCH) for size in SIZES), (SIZES[1], 2 * BATCH)]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process: no memory to be used again
            seconds, memory_mb = pool.apply(measure, (num_items, batch_size, arguments.repeats))
        append("scale", "uat_mc", {"B": batch_size, "N": num_items, **CATALOG}, seconds, memory_mb)
        rows.append((num_items, batch_size, quantile(seconds, 0.5), memory_mb))
        print(
            f"N = {num_items:>9,}, B = {batch_size:>4}: {rows[-1][2]:7.2f} s a step, {memory_mb:7.0f} MB beside the "
            f"model; one B x N matrix would be {batch_size * num_items * 4 / 2**20:,.0f} MB",
            flush=True,
        )
    for small, large in itertools.pairwise(rows[: len(SIZES)]):
        items = large[0] - small[0]
        print(
            f"from {small[0]:,} to {large[0]:,} items: {(large[2] - small[2]) / items * 1e6:.2f} s and "
            f"{(large[3] - small[3]) / items * 1e6:,.0f} MB for each million more"
        )
    more = rows[-1][3] - rows[1][3]
    print(f"twice the batch at {rows[1][0]:,} items: {more:+.0f} MB ({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
