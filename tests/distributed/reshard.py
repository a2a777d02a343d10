"""Run by torchrun from test_reshard.py: `save` trains, stops in the middle and goes on undisturbed; `resume` takes the
checkpoints of other world sizes up, says what it found in them, and goes on."""

import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

SCENARIOS = {
    "clean": ["clean.objective=full_catalog", "tables.optimizer=adagrad"],
    "adversarial": ["engine.zero_stage=1", "tables.optimizer=rowwise_adagrad", "model.user=both"],
}
BEFORE, AFTER = 5, 4
"""Steps before the checkpoint and after it."""


def steps(trainer: Trainer, count: int) -> list[float]:
    """Global losses of so many steps."""
    losses = []
    for _ in range(count):
        batch = trainer.sampler.batch(trainer.position.epoch, trainer.position.batch)
        total = torch.stack([term.detach().double() for term in trainer.train_step(batch).values()]).sum()
        dist.all_reduce(total)
        trainer._advance()
        losses.append(float(total))
    return losses


def digest(trainer: Trainer) -> dict[str, float]:
    """Sums of tables, their optimisers, and the dense moments over all ranks, in float64."""
    sums = {}
    for table in trainer.model.tables:
        rows = [table.local_weight]
        for values in table.optimizer_state().values():
            rows += [shard.tensor for state in values.values() for shard in state.local_shards()]
        for index, part in enumerate(rows):
            whole = part.double().reshape(len(part), -1)  # row-wise state is one number a row
            total = (whole * torch.arange(1, 1 + whole.shape[1])).sum() + whole.square().sum()
            dist.all_reduce(total)
            sums[f"{table.name}.{index}"] = float(total)
    for name, value in {**trainer.model.engine.weights(), **trainer.model.engine.state()}.items():
        sums[f"dense.{name}"] = float(value.double().sum())
    return sums


def trainer_of(folder: Path, name: str, scenario: str, world: process_group.World) -> Trainer:
    return Trainer(load_config(folder / "base.yaml", [f"name={name}", *SCENARIOS[scenario]]), world)


def main(mode: str, folder_name: str) -> None:
    world, folder = process_group.join(), Path(folder_name)
    seen = {}
    for scenario in SCENARIOS:
        if mode == "save":
            trainer = trainer_of(folder, f"{scenario}-{world.size}", scenario, world)
            trainer.begin(Position(scenario))
            before = steps(trainer, BEFORE)
            trainer._save()
            state = digest(trainer)
            seen[scenario] = {"before": before, "state": state, "after": steps(trainer, AFTER)}
            assert trainer.checkpoints.settle() is None
            continue
        for saved_by in (1, 2, 4):
            source, name = folder / "runs" / f"{scenario}-{saved_by}", f"{scenario}-{saved_by}-{world.size}"
            if world.is_first:
                target = source.with_name(name)
                shutil.copytree(source, target)
                options = yaml.safe_load((target / "config.yaml").read_text())
                (target / "config.yaml").write_text(yaml.safe_dump({**options, "name": name}))
            dist.barrier()
            trainer = trainer_of(folder, name, scenario, world)
            assert trainer._resumed() and trainer.position.step == BEFORE
            state = digest(trainer)
            seen[f"{scenario}/{saved_by}"] = {"state": state, "after": steps(trainer, AFTER)}
    if world.is_first:
        (folder / f"{mode}-{world.size}.json").write_text(json.dumps(seen))
    process_group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
