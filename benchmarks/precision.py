"""bf16 score passes against float32 ones, on one rank: the full-catalog loss of the same weights in both formats, step
by step, and how far apart two trainings drift that differ in nothing else.

python -m benchmarks.precision configs/vbpr-hm-fashion.yaml [option=value ...]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

FORMATS = ("fp32", "bf16")


@torch.no_grad()
def loss_of_weights(trainer: Trainer, of: Trainer) -> float:
    """The loss on the next batch by the objective of `trainer`, of the weights of another."""
    batch = of.sampler.batch(of.position.epoch, of.position.batch)
    objective, ranking = trainer.step.objective, of.model.ranking()
    return float(objective.loss(ranking.user_rows(batch.users_B), ranking.items_nK, batch, objective.rows(batch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    world = process_group.join()
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for precision in FORMATS:
            overrides = [f"name={precision}", f"output_dir={folder}", f"training.score_precision={precision}"]
            trainer = Trainer(load_config(arguments.config, [*arguments.overrides, *overrides]), world)
            trainer.begin(Position("clean"))
            trainer.checkpoints.settle()
            trainers[precision] = trainer
        same_weights, drift = [], []
        for _ in range(arguments.steps):
            rounded, exact = (loss_of_weights(trainers[name], trainers["bf16"]) for name in ("bf16", "fp32"))
            same_weights.append(abs(rounded / exact - 1))
            losses = {}
            for precision, trainer in trainers.items():
                batch = trainer.sampler.batch(trainer.position.epoch, trainer.position.batch)
                losses[precision] = float(trainer.train_step(batch)["bpr"])
                trainer._advance()
            drift.append(abs(losses["bf16"] / losses["fp32"] - 1))
        for what, values in (("same weights", same_weights), ("two trainings", drift)):
            print(f"{what}: largest relative difference of {arguments.steps} steps {max(values):.1e}, ", end="")
            print(f"mean {sum(values) / len(values):.1e}; at the end {values[-1]:.1e}")
    process_group.leave()


if __name__ == "__main__":
    main()
