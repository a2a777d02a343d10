"""One coordinated `sampled` step of the trainer at the size of Amazon Baby (19,445 users, 7,050 items, features
4096 + 384, batch 2048), and one clean step.

python -m benchmarks.sampled_step
"""

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import append, quantile, timed
from uatmc_dist.config import Config
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.parallel import process_group
from uatmc_dist.trainer import Position, Trainer

SIZES = {"users": 19_445, "items": 7_050, "interactions": 160_000, "visual_dim": 4096, "text_dim": 384}


def one_step(trainer: Trainer, indices: Iterator[int]) -> None:
    trainer.train_step(trainer.sampler.batch(0, next(indices)))


def main() -> None:
    world = process_group.join()
    with tempfile.TemporaryDirectory() as folder:
        synthesize(Path(folder) / "baby", **SIZES, seed=0)
        for phase in ("clean", "adversarial"):
            config = Config.model_validate(
                {
                    "name": phase,
                    "catalog": f"{folder}/baby",
                    "output_dir": folder,
                    "clean": {"objective": "sampled"},
                    "adversarial": {"objective": "sampled", "adversary": "uat_mc", "epochs": 1},
                }
            )
            trainer = Trainer(config, world)
            trainer.begin(Position(phase))
            seconds = timed({phase: partial(one_step, trainer, itertools.count())}, 7)[phase]
            append(f"sampled_step_{phase}", "ours", {"B": 2048, **SIZES}, seconds, None)
            print(f"{phase}: {quantile(seconds, 0.5):.3f} s a step ({torch.get_num_threads()} threads)")
    process_group.leave()


if __name__ == "__main__":
    main()
