"""Whole steps of the trainer at the size of Amazon Baby (19,445 users, 7,050 items, features 4096 + 384, batch 2048):
clean ones, the adversarial phase without an adversary, and every defence, in turn; and how many operations of PyTorch
each dispatches.

python -m benchmarks.trainer_step                           # every item is a negative of every pair
python -m benchmarks.trainer_step --objective softmax       # or sampled
python -m benchmarks.trainer_step --rehearse                # tiny sizes: whether it runs, not how fast
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import append, median_ratio, quantile, timed
from uatmc_dist.config import Config
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

SIZES = {"users": 19_445, "items": 7_050, "interactions": 160_000, "visual_dim": 4096, "text_dim": 384}
ASCENTS = {"user_coordination": 2, "conditional_gradient": 3}
CLEAN, PLAIN = "clean", "adversarial phase, no adversary"
TINY = {"users": 60, "items": 200, "interactions": 1600, "visual_dim": 32, "text_dim": 16}
DEFENCES = (
    *("noise", "visual_only", "text_only", "uat", "uat_mc", "user_coordination", "conditional_gradient", "amr"),
    "certified",
)
STEPS = {CLEAN: ("clean", "none"), PLAIN: ("adversarial", "none"), **{name: ("adversarial", name) for name in DEFENCES}}


def one_step(trainer: Trainer, indices: Iterator[int]) -> None:
    trainer.train_step(trainer.sampler.batch(0, next(indices) % trainer.sampler.batches_per_epoch))
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize()


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def dispatched(trainer: Trainer, indices: Iterator[int]) -> int:
    """Operations of one step, making of the batch and backward pass included; a kernel of ours is one of them."""
    one_step(trainer, indices)  # what the first step makes once
    with _Operations() as operations:
        one_step(trainer, indices)
    return operations.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=("full_catalog", "softmax", "sampled"), default="full_catalog")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    sizes, repeats = (TINY, 1) if arguments.rehearse else (SIZES, arguments.repeats)
    world = process_group.join()
    with tempfile.TemporaryDirectory() as folder:
        synthesize(Path(folder) / "baby", **sizes, seed=0)
        steps, operations = {}, {}
        for name, (phase, adversary) in STEPS.items():
            config = Config.model_validate(
                {
                    "name": name.replace(" ", "-").replace(",", ""),
                    "catalog": f"{folder}/baby",
                    "output_dir": folder,
                    "clean": {"objective": arguments.objective},
                    "adversarial": {
                        "objective": arguments.objective,
                        "adversary": adversary,
                        "epochs": 1,
                        "steps": ASCENTS.get(adversary, 1),
                    },
                }
            )
            trainer = Trainer(config, world)
            trainer.begin(Position(phase))
            trainer.checkpoints.settle()
            indices = itertools.count()
            operations[name] = dispatched(trainer, indices)
            steps[name] = partial(one_step, trainer, indices)
        seconds = timed(steps, repeats)
        for name, values in seconds.items():
            given = {"B": 2048, **sizes}
            append(f"trainer_step_{arguments.objective}", name, given, values, None, device=world.device.type)
            seconds_a_step = f"{quantile(values, 0.5):.3f} s a step ({torch.get_num_threads()} threads)"
            print(f"{name}: {seconds_a_step}, {operations[name]} operations")
        for name in DEFENCES:
            ratios = [f"{median_ratio(seconds[name], seconds[other]):.2f} times '{other}'" for other in (CLEAN, PLAIN)]
            print(f"{name} takes {' and '.join(ratios)}")
    process_group.leave()


if __name__ == "__main__":
    main()
