"""configs/million-items.yaml on this machine: start-up, clean sampled steps, the projection pass, uat_mc steps over the
whole catalog, and the peak memory of a rank after each. The first run makes the catalog (five minutes, 2.8 GB).

OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 -m benchmarks.million_items
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from benchmarks.common import append
from benchmarks.trainer_step import one_step
from uatmc_dist.config import load_config
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.logs import peak_memory_bytes
from uatmc_dist.parallel import process_group
from uatmc_dist.progress import shown
from uatmc_dist.training import Position, Trainer

CATALOG = {"users": 10**6, "items": 10**6, "interactions": 20 * 10**6, "visual_dim": 1024, "text_dim": 384}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="option=value, such as model.user=history")
    parser.add_argument("--clean-steps", type=int, default=20)
    parser.add_argument("--adversarial-steps", type=int, default=1)
    arguments = parser.parse_args()
    world = process_group.join()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"name=rank-{world.rank}", f"output_dir={folder}", *arguments.overrides]
        config = load_config(Path("configs/million-items.yaml"), overrides)
        if world.is_first and not (config.catalog / "catalog.json").exists():
            with shown("rows") as progress:
                synthesize(config.catalog, seed=0, progress=progress, **CATALOG)
        process_group.any_rank(0)

        def tell(what: str, seconds: list[float]) -> None:
            peak_mb = process_group.any_rank(peak_memory_bytes(world.device) >> 20)
            if world.is_first:
                median = sorted(seconds)[len(seconds) // 2]
                print(f"{what}: {median:.2f} s; peak memory of a rank so far {peak_mb:,} MB", flush=True)
                append(
                    "million_items",
                    ", ".join([what, f"{world.size} ranks", *arguments.overrides]),
                    CATALOG,
                    seconds,
                    peak_mb,
                )

        def steps(count: int) -> list[float]:
            indices, seconds = itertools.count(), []
            for _ in range(count):
                start = time.perf_counter()
                one_step(trainer, indices)
                seconds.append(time.perf_counter() - start)
            return seconds

        start = time.perf_counter()
        trainer = Trainer(config, world)
        trainer.begin(Position("clean"))
        tell("opening, sharding, first checkpoint begun", [time.perf_counter() - start])
        tell("clean sampled step", steps(arguments.clean_steps))
        trainer.checkpoints.settle()
        start = time.perf_counter()
        trainer.begin(Position("adversarial"))
        tell("projection of all features", [time.perf_counter() - start])
        trainer.checkpoints.settle()
        start = time.perf_counter()
        trainer.begin(Position("adversarial"))
        tell("the same from the cache", [time.perf_counter() - start])
        tell("uat_mc step over all items", steps(arguments.adversarial_steps))
        trainer.checkpoints.settle()
    process_group.leave()


if __name__ == "__main__":
    main()
