"""Run by torchrun from test_operations.py: a step dispatches no more operations than it may."""

import itertools
import sys
from pathlib import Path

from benchmarks.trainer_step import dispatched
from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

MOST = {
    ("none", "full_catalog"): 139,
    ("certified", "full_catalog"): 180,
    ("uat", "full_catalog"): 206,
    ("uat", "softmax"): 224,
    ("uat_mc", "full_catalog"): 229,
}
"""Of one rank. These may only shrink: on a GPU the host launches each of them."""


def main() -> None:
    world, found = process_group.join(), {}
    for adversary, objective in MOST:
        options = [
            f"adversarial.adversary={adversary}",
            f"adversarial.objective={objective}",
            f"name={adversary}-{objective}",
        ]
        trainer = Trainer(load_config(Path(sys.argv[1]), options), world)
        trainer.begin(Position("adversarial"))
        trainer.checkpoints.settle()
        found[adversary, objective] = dispatched(trainer, itertools.count())
    assert all(found[case] <= most for case, most in MOST.items()), found
    print("few operations", found)
    process_group.leave()


if __name__ == "__main__":
    main()
