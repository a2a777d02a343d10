"""Cost of a training step of every defence of a plan, relative to a step without an adversary on the same batches.

python -m benchmarks.defence_cost configs/defences/vbpr.yaml

All of them live in one process and take turns, so that a machine that is busy slows all alike. Of the seconds of three
steps (Mirror Gradient goes back on one of three), the median of the pair-by-pair ratios. Writes
benchmarks/results/cost-PLAN-CATALOG.csv, which benchmarks.defences puts into its tables.
"""

import argparse
import csv
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.common import RESULTS, median_ratio, timed
from benchmarks.defences import Plan
from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

PLAIN = "none"
_STEPS = 3


def steps(trainer: Trainer) -> None:
    for batch in range(_STEPS):
        trainer.position = replace(trainer.position, batch=batch)
        trainer.train_step(trainer.sampler.batch(0, batch))


def costs(plan: Plan, world: process_group.World, repeats: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        functions: dict[str, Callable[[], object]] = {}
        for name, overrides in plan.defences.items():
            own = [f"name={name}", f"output_dir={folder}", *overrides]
            trainer = Trainer(load_config(Path(plan.config), [*plan.overrides, *own]), world)
            trainer.begin(Position("adversarial"))
            trainer.checkpoints.settle()
            functions[name] = partial(steps, trainer)
        seconds = timed(functions, repeats)
    return {name: median_ratio(values, seconds[PLAIN]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--catalog", help="name of the one catalog of the plan to measure")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    world = process_group.join()
    for plan in Plan.chosen(arguments.plan, arguments.catalog):
        measured = costs(plan, world, arguments.repeats)
        with (RESULTS.parent / f"cost-{plan.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["defence", "cost"])
            writer.writerows([name, f"{ratio:.3f}"] for name, ratio in measured.items())
        print(f"{plan.name}: {', '.join(f'{name} {ratio:.2f}' for name, ratio in measured.items())}", flush=True)
    process_group.leave()


if __name__ == "__main__":
    main()
