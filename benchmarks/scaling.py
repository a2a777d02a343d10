"""Steps of the trainer on 1, 2 and 4 gloo ranks, strong and weak scaling, held against the cost model.

python -m benchmarks.scaling                    # all of docs/scaling.md's check, some minutes on two cores
python -m benchmarks.scaling --ranks 2 --rounds 1

Every launch measures what the machine does at that number of ranks, before and after each step. One number is fitted:
the fixed cost of a step, from steps of the sampled objective on the smallest catalog.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import append, median_ratio, quantile
from uatmc_dist.config import Config
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.parallel import process_group
from uatmc_dist.parallel.cost_model import step_cost
from uatmc_dist.parallel.machine import Machine, measured
from uatmc_dist.parallel.memory_model import memory_per_rank
from uatmc_dist.parallel.problem import Problem
from uatmc_dist.training import Position, Trainer

STRONG = (5_000, 20_000, 80_000)
"""Items of the whole catalog."""
WEAK = (5_000, 20_000)
"""Items for each rank."""
USERS, INTERACTIONS, WIDTH, BATCH = 20_000, 120_000, 32, 1024
EMPTY = {"users": 300, "items": 200, "interactions": 3000}
"""Steps on this catalog, of 16 pairs in 8 dimensions, compute next to nothing: they cost what the host does."""


MADE_BY_A_STEP = (
    "rows of items in a step",
    "rows of users in a step",
    "indices of lookups",
    "buffers of the score passes",
)
"""Components of the memory model that are there at the peak of a step and gone after it."""


def catalog_sizes(ranks: int) -> list[int]:
    return sorted({*STRONG, *(items * ranks for items in WEAK)})


def problem(items: int, objective: str) -> Problem:
    return Problem(
        USERS,
        items,
        INTERACTIONS,
        WIDTH,
        WIDTH,
        (WIDTH,),
        (WIDTH,),
        batch_size=BATCH,
        objective=objective,  # type: ignore[arg-type]
    )


def trainer_of(folder: Path, items: int, objective: str, world: process_group.World) -> Trainer:
    is_empty = items == EMPTY["items"]
    config = Config.model_validate(
        {
            "name": f"{objective}-{items}-{world.size}",
            "catalog": str(folder / str(items)),
            "output_dir": str(folder / "runs"),
            "model": {"visual_hidden": [WIDTH], "text_hidden": [WIDTH], "embedding_dim": 8 if is_empty else 64},
            "training": {"batch_size": 16 if is_empty else BATCH},
            "adversarial": {"objective": objective, "epochs": 1},
        }
    )
    trainer = Trainer(config, world)
    trainer.begin(Position("adversarial"))
    return trainer


def peak_bytes(step: Callable[[], object]) -> int:
    """Largest sum of what was allocated and not yet freed during one step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes))


def as_rank(folder: Path, rounds: int, steps: int) -> None:
    """Measures on this rank of a launch; rank 0 leaves what it found in folder/ranks-R.json."""
    world = process_group.join()
    empty = "full_catalog", EMPTY["items"]
    cases = {empty: trainer_of(folder, empty[1], empty[0], world)}
    cases["sampled", STRONG[0]] = trainer_of(folder, STRONG[0], "sampled", world)
    for items in catalog_sizes(world.size):
        cases["full_catalog", items] = trainer_of(folder, items, "full_catalog", world)
    indices = {case: itertools.cycle(range(trainer.sampler.batches_per_epoch)) for case, trainer in cases.items()}

    def seconds(case: tuple[str, int]) -> float:
        trainer = cases[case]
        start = time.perf_counter()
        trainer.train_step(trainer.sampler.batch(0, next(indices[case])))
        return time.perf_counter() - start

    found: list[dict[str, Any]] = []
    for case in cases:  # the first steps allocate
        seconds(case)
    empty_s = statistics.median(seconds(empty) for _ in range(50))
    del cases[empty]
    for _ in range(rounds):
        for case in cases:
            objective, items = case
            asked = problem(items, objective)
            measure = partial(measured, BATCH, asked.embedding_dim, asked.rows(world.size), host_s=0.0)
            peak, machine = peak_bytes(partial(seconds, case)), measure()
            for _ in range(steps):
                taken, before, machine = seconds(case), machine, measure()
                costs = [step_cost(asked, each, world.size) for each in (before, machine)]
                terms = [{term.name: term.seconds for term in cost.terms} for cost in costs]
                found.append(
                    {
                        "objective": objective,
                        "items": items,
                        "seconds": taken,
                        "predicted": statistics.mean(cost.seconds for cost in costs),
                        "terms": {name: statistics.mean(each[name] for each in terms) for name in terms[0]},
                        "rates": machine.rates,
                        "latency_s": machine.latency_s,
                        "empty_s": empty_s,
                        "peak": [peak, modelled_peak(asked, machine, world.size)],
                    }
                )
    if world.is_first:
        (folder / f"ranks-{world.size}.json").write_text(json.dumps(found))
    process_group.leave()


def modelled_peak(asked: Problem, machine: Machine, ranks: int) -> float:
    return sum(each.bytes for each in memory_per_rank(asked, machine, ranks) if each.name in MADE_BY_A_STEP)


def launch(folder: Path, ranks: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["-m", "benchmarks.scaling", "--folder", str(folder)]
    command += ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads((folder / f"ranks-{ranks}.json").read_text())


def fixed_cost(found: list[dict[str, Any]]) -> float:
    """What the model leaves of a step that hardly computes anything."""
    rest = [each["seconds"] - each["predicted"] for each in found if each["objective"] == "sampled"]
    return max(statistics.median(rest), 0.0)


def summary(found: list[dict[str, Any]], items: int, host_s: float) -> dict[str, Any]:
    """Measured and predicted seconds of the steps on one catalog, median of their ratios, and of the terms."""
    steps = [each for each in found if (each["objective"], each["items"]) == ("full_catalog", items)]
    seconds, predicted = [each["seconds"] for each in steps], [each["predicted"] + host_s for each in steps]
    terms = {name: statistics.median(each["terms"][name] for each in steps) for name in steps[0]["terms"]}
    return {
        "seconds": seconds,
        "predicted": predicted,
        "ratio": median_ratio(predicted, seconds),
        "terms": {**terms, "host": host_s},
        "peak": steps[0]["peak"],
    }


def report(ranks: int, found: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    host_s = fixed_cost(found)
    rates = {name: statistics.median(each["rates"][name] for each in found) for name in found[0]["rates"]}
    latency_s = statistics.median(each["latency_s"] for each in found)
    constants = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    fixed = f"fixed {1e3 * host_s:.1f} ms, a step of nothing {1e3 * found[0]['empty_s']:.1f} ms"
    print(f"\n{ranks} rank(s): {fixed}, latency {1e6 * latency_s:.0f} us; a second: {constants}")
    print("| ranks | items | measured s | predicted s | predicted/measured | largest terms | MB measured, model |")
    print("| --- " * 7 + "|")
    rows = {}
    for items in catalog_sizes(ranks):
        rows[items] = row = summary(found, items, host_s)
        middle, guess = statistics.median(row["seconds"]), statistics.median(row["predicted"])
        largest = sorted(row["terms"].items(), key=lambda term: -term[1])[:5]
        shares = ", ".join(f"{name} {seconds / sum(row['terms'].values()):.0%}" for name, seconds in largest)
        memory = ", ".join(f"{size / 1e6:.1f}" for size in row["peak"])
        print(
            f"| {ranks} | {items:,} | {middle:.3f} | {guess:.3f} | {row['ratio']:.2f} | {shares} | {memory} |",
            flush=True,
        )
        sizes = {"B": BATCH, "N": items, "ranks": ranks}
        append("scaling", "measured", sizes, row["seconds"], None)
        append("scaling", "predicted", sizes, row["predicted"], None)
    return rows


def print_scaling(rows: dict[int, dict[int, dict[str, Any]]]) -> None:
    """Seconds by number of ranks for a fixed catalog, and for a fixed share of it. The 20th percentile: neighbours on a
    shared machine only ever slow a step down."""
    for title, catalogs in (
        ("strong scaling, items", {items: {ranks: items for ranks in rows} for items in STRONG}),
        ("weak scaling, items a rank", {items: {ranks: items * ranks for ranks in rows} for items in WEAK}),
    ):
        print(f"\n| {title} |" + "".join(f" {ranks} rank(s): s a step, items/s |" for ranks in rows))
        print("| --- " * (1 + len(rows)) + "|")
        for items, of_ranks in catalogs.items():
            seconds = {ranks: quantile(rows[ranks][size]["seconds"], 0.2) for ranks, size in of_ranks.items()}
            cells = [f" {seconds[ranks]:.3f}, {size / seconds[ranks]:,.0f} |" for ranks, size in of_ranks.items()]
            print(f"| {items:,} |" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="steps of each catalog in a round")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # what a launch tells its ranks
    arguments = parser.parse_args()
    if arguments.folder is not None:
        as_rank(arguments.folder, arguments.rounds, arguments.steps)
    torch.set_num_threads(1)  # as the ranks have; it is written beside the results
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesize(folder / str(EMPTY["items"]), **EMPTY, visual_dim=WIDTH, text_dim=WIDTH, seed=0)
        for items in sorted({items for ranks in arguments.ranks for items in catalog_sizes(ranks)}):
            sizes = {"users": USERS, "items": items, "interactions": INTERACTIONS}
            synthesize(folder / str(items), **sizes, visual_dim=WIDTH, text_dim=WIDTH, seed=0)
        print_scaling({ranks: report(ranks, launch(folder, ranks, arguments)) for ranks in arguments.ranks})


if __name__ == "__main__":
    main()
