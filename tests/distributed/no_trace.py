"""Run by torchrun from test_no_trace.py: everything of the model is bit-identical when the update begins."""

import random
import sys
from pathlib import Path

import numpy as np
import torch

from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Trainer

SCENARIOS = [
    ["adversarial.adversary=uat", "engine.zero_stage=0"],
    ["adversarial.adversary=uat_mc", "engine.zero_stage=0", "tables.optimizer=rowwise_adagrad"],
    ["adversarial.adversary=uat_mc", "engine.zero_stage=1", "adversarial.objective=sampled"],
    ["adversarial.adversary=uat_mc", "engine.zero_stage=2", "adversarial.steps=3"],
    ["adversarial.adversary=uat_mc", "engine.zero_stage=1", "engine.precision=bf16"],
    ["adversarial.adversary=noise", "adversarial.objective=sampled"],
    ["adversarial.adversary=user_coordination", "adversarial.steps=2", "model.backbone=vbpr_own_users"],
    ["adversarial.adversary=conditional_gradient", "adversarial.steps=2", "model.user=history"],
    ["adversarial.adversary=amr", "adversarial.objective=softmax"],
    ["adversarial.adversary=uat_mc", "model.backbone=mmgcn", "adversarial.objective=sampled"],
    ["adversarial.adversary=uat_mc", "model.backbone=mmgcn", "engine.zero_stage=2", "adversarial.steps=2"],
    ["adversarial.adversary=uat_mc", "model.user=both", "training.reg_kind=squared"],
    ["adversarial.adversary=user_coordination", "adversarial.at=encoder", "adversarial.steps=2"],
    ["adversarial.adversary=uat", "adversarial.at=encoder", "model.backbone=mmgcn", "adversarial.objective=sampled"],
]


class WatchedTrainer(Trainer):
    """Compares at the last moment before the outer backward pass."""

    num_checked = 0

    def train_step(self, batch):
        self.before = self.snapshot() if self.step.adversary is not None else {}
        return super().train_step(batch)

    def _refuse_non_finite(self, terms):
        if self.step.adversary is not None:
            after = self.snapshot()
            assert after.keys() == self.before.keys()
            for name, value in self.before.items():
                assert torch.equal(value, after[name]), f"{name} changed in the inner step"
            self.num_checked += 1
        super()._refuse_non_finite(terms)

    def snapshot(self):
        state = {"rng": torch.get_rng_state(), "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64))}
        state["python"] = torch.tensor(random.getstate()[1])
        for table in self.model.tables:
            state[table.name] = table.local_weight
            for key, value in flat(table.optimizer_state()):
                state[f"{table.name}.{key}"] = value
        for name, parameter in self.model.dense.named_parameters():
            state[name] = parameter.detach()
            state[f"{name}.grad"] = torch.zeros(0) if parameter.grad is None else parameter.grad
        for name, buffer in self.model.dense.named_buffers():
            state[f"buffer.{name}"] = buffer
        state.update({f"optimizer.{key}": value for key, value in self.model.engine.state().items()})
        return {name: value.clone() for name, value in state.items()}


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            shards = value.local_shards() if hasattr(value, "local_shards") else []
            yield f"{prefix}{key}", shards[0].tensor if shards else value


def main(config_path: str) -> None:
    world = process_group.join()
    for index, overrides in enumerate(SCENARIOS):
        trainer = WatchedTrainer(
            load_config(Path(config_path), [f"name=trace-{index}-{world.size}", *overrides]), world
        )
        trainer.fit()
        assert trainer.num_checked > 5
    print("no trace")
    process_group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
