"""Run by torchrun from test_ranks.py: trains every scenario and writes what it saw to a JSON file. One rank trains to
the end, several as far as they are compared."""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Trainer

MMGCN = ["model.backbone=mmgcn", "training.lr=1e-3", "tables.lr=0.01"]
"""Slow: with the rates of the others rounding grows tenfold every few steps."""
SCENARIOS = {
    "sampled/none": ["clean.objective=sampled", "adversarial.objective=sampled", "adversarial.adversary=none"],
    "sampled/uat": ["clean.objective=sampled", "adversarial.objective=sampled", "adversarial.adversary=uat"],
    "sampled/uat_mc": ["clean.objective=sampled", "adversarial.objective=sampled", "engine.zero_stage=1"],
    "full/none": ["clean.objective=full_catalog", "adversarial.adversary=none", "engine.zero_stage=2"],
    "full/uat": ["clean.objective=full_catalog", "adversarial.adversary=uat", "engine.gradient_clipping=0.01"],
    "full/uat_mc": ["clean.objective=full_catalog", "tables.optimizer=rowwise_adagrad"],
    "full/noise": ["adversarial.adversary=noise"],
    "sampled/noise": ["adversarial.adversary=noise", "adversarial.objective=sampled"],
    "full/visual_only": ["adversarial.adversary=visual_only", "adversarial.budget=any_content"],
    "sampled/text_only": ["adversarial.adversary=text_only", "adversarial.objective=sampled", "adversarial.steps=2"],
    "full/certified": ["adversarial.adversary=certified"],
    "sampled/certified": ["adversarial.adversary=certified", "adversarial.objective=sampled"],
    "full/uat_mc/known": ["clean.objective=full_catalog", "training.exclude_known_positives=true"],
    "full/uat_mc/steps": ["adversarial.steps=3", "training.lr_schedule=cosine"],
    "full/uat_mc/linf": ["adversarial.steps=3", "adversarial.norm=linf"],
    "sampled/uat_mc/steps": ["adversarial.objective=sampled", "adversarial.steps=2"],
    "sampled/uat_mc/history": ["model.user=history", "clean.objective=sampled", "adversarial.objective=sampled"],
    "full/uat_mc/history": [
        "model.user=history",
        "clean.objective=full_catalog",
        "training.reg_kind=squared",
        "tables.optimizer=rowwise_adagrad",
    ],
    "full/uat/both": ["model.user=both", "adversarial.adversary=uat", "tables.optimizer=rowwise_adagrad"],
    "softmax/uat_mc": [
        "clean.objective=softmax",
        "adversarial.objective=softmax",
        "model.user=history",
        "training.popularity_correction=0.5",
    ],
    "softmax/certified": [
        "adversarial.objective=softmax",
        "adversarial.adversary=certified",
        "adversarial.budget=any_content",
        "adversarial.epsilon=0.3",
        "adversarial.whitening=0.75",
    ],
    "softmax/uat_mc/known": [
        "clean.objective=softmax",
        "adversarial.objective=softmax",
        "training.exclude_known_positives=true",
    ],
    "own users/full/uat_mc": ["model.backbone=vbpr_own_users", "tables.optimizer=rowwise_adagrad"],
    "own users/softmax/certified": [
        "model.backbone=vbpr_own_users",
        "model.user=history",
        "clean.objective=softmax",
        "adversarial.objective=softmax",
        "adversarial.adversary=certified",
        "adversarial.whitening=0.5",
    ],
    "own users/sampled/users": [
        "model.backbone=vbpr_own_users",
        "adversarial.objective=sampled",
        "adversarial.adversary=user_coordination",
        "adversarial.steps=2",
    ],
    "full/users": ["adversarial.adversary=user_coordination", "adversarial.steps=2"],
    "softmax/users/known": [
        "clean.objective=softmax",
        "adversarial.objective=softmax",
        "adversarial.adversary=user_coordination",
        "adversarial.steps=2",
        "training.exclude_known_positives=true",
    ],
    "full/uat/encoder": ["adversarial.adversary=uat", "adversarial.at=encoder"],
    "full/conditional": ["adversarial.adversary=conditional_gradient", "adversarial.steps=3"],
    "sampled/amr/mirrored": [
        "adversarial.adversary=amr",
        "adversarial.objective=sampled",
        "mirror_gradient.alpha2=0.2",
        "model.user=history",
        "tables.optimizer=rowwise_adagrad",
    ],
    "mmgcn/sampled/uat_mc": [*MMGCN, "clean.objective=sampled", "adversarial.objective=sampled"],
    "mmgcn/full/uat": [
        *MMGCN,
        "clean.objective=full_catalog",
        "adversarial.adversary=uat",
        "model.preference=frozen",
        "engine.zero_stage=1",
    ],
    "mmgcn/full/uat_mc": [*MMGCN, "adversarial.steps=2"],
    "mmgcn/softmax/conditional": [
        *MMGCN,
        "clean.objective=softmax",
        "adversarial.objective=softmax",
        "adversarial.adversary=conditional_gradient",
        "adversarial.steps=2",
        "tables.optimizer=rowwise_adagrad",
    ],
    "mmgcn/softmax/users": [
        *MMGCN,
        "clean.objective=softmax",
        "adversarial.objective=softmax",
        "adversarial.adversary=user_coordination",
        "adversarial.steps=2",
    ],
    "mmgcn/full/uat/encoder": [*MMGCN, "adversarial.adversary=uat", "adversarial.at=encoder"],
    "mmgcn/sampled/noise": [
        *MMGCN,
        "adversarial.objective=sampled",
        "adversarial.adversary=noise",
        "adversarial.projected_precision=bf16",
    ],
    "bpr-mf": ["model.content=false", "adversarial.epochs=0", "clean.epochs=3", "clean.objective=full_catalog"],
    "bf16": ["engine.precision=bf16", "engine.zero_stage=1", "adversarial.whitening=1"],
}
"""Overrides of the base configuration, whose adversarial phase lasts two epochs."""
ON_FOUR = (
    *("full/none", "full/uat_mc", "full/uat_mc/known", "full/uat_mc/linf", "sampled/uat_mc/history", "full/uat/both"),
    *("softmax/uat_mc", "softmax/certified", "own users/sampled/users", "softmax/users/known", "full/conditional"),
    *("sampled/amr/mirrored", "mmgcn/full/uat", "mmgcn/softmax/users", "bpr-mf", "bf16"),
)
"""What four ranks train: every objective, kind of users, backbone and way of the adversary, each at least once."""


COMPARED = 20
"""Steps."""


class Enough(Exception):
    pass


class Compared(Trainer):
    def _report(self, terms: dict[str, torch.Tensor]) -> None:
        super()._report(terms)
        if self.world.size > 1 and self.position.step == COMPARED:
            raise Enough


def of_ranks(ranks: int) -> dict[str, list[str]]:
    return {name: SCENARIOS[name] for name in ON_FOUR} if ranks == 4 else SCENARIOS


def main(config_path: str, out: str) -> None:
    world = process_group.join()
    seen = {}
    for name, overrides in of_ranks(world.size).items():
        run = f"{name.replace('/', '-')}-{world.size}"
        config = load_config(Path(config_path), [f"name={run}", *overrides])
        trainer = Compared(config, world)
        with contextlib.suppress(Enough):
            trainer.fit()
        assert trainer.checkpoints.settle() is None
        dist.barrier()
        lines = [json.loads(line) for line in trainer.run.metrics.read_text().splitlines()]
        terms = [
            {
                key: line[key]
                for key in ("loss", "bpr", "bpr_adversarial", "bpr_certified", "regularisation", "alignment")
                if key in line
            }
            for line in lines
            if "loss" in line
        ]
        valid = [line for line in lines if "loss" not in line]
        seen[name] = {"losses": terms, "valid": valid}
    if world.is_first:
        Path(out).write_text(json.dumps(seen))
    process_group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
