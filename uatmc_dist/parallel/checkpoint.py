"""Checkpoints that load at any world size: everything under global names, by torch.distributed.checkpoint.

checkpoints/step-N/     a whole one (it is renamed when complete); position.json says where the run stood
checkpoints/latest      name of the newest whole one
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import PickleError
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from uatmc_dist.errors import UserError
from uatmc_dist.parallel.engine import DenseEngine


class CheckpointedTable(Protocol):
    name: str

    def weights(self) -> dict[str, Any]: ...

    def optimizer_state(self) -> dict[str, Any]: ...

    def load(self, weights: dict[str, Any], optimizer_state: dict[str, Any] | None) -> None: ...


class Checkpointed(Protocol):
    """What a checkpoint holds of a model, under global names."""

    engine: DenseEngine

    @property
    def tables(self) -> Sequence[CheckpointedTable]: ...

    def dense_weights(self) -> dict[str, torch.Tensor]: ...


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def latest(self) -> Path | None:
        """The newest whole checkpoint. Raises UserError where `latest` names one that is not there."""
        pointer = self._folder / "latest"
        if not pointer.exists():
            return None
        path = self._folder / pointer.read_text(encoding="utf-8").strip()
        if not (path / "position.json").exists():
            raise UserError(f"{path}: missing or incomplete, but {pointer} names it; {self._mend()}")
        return path

    def at_step(self, step: int) -> Path:
        return self._folder / f"step-{step}"

    def position(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads((path / "position.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path / 'position.json'}: cannot be read ({error}); {self._mend()}") from None

    def save(self, model: Checkpointed, position: dict[str, Any], protected_step: int | None) -> None:
        """Collective. `protected_step` (the best one so far) is never pruned."""
        path = self.at_step(position["step"])
        partial = path.with_suffix(".partial")
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        state = {**_weights(model), **_optimizer_state(model)}
        dcp.save(state, checkpoint_id=partial)
        dist.barrier()
        if dist.get_rank() == 0:
            (partial / "position.json").write_text(json.dumps(position), encoding="utf-8")
            replaced = path.with_suffix(".replaced")
            if path.exists():  # a phase begins at the step where the one before it ended
                path.rename(replaced)
            partial.rename(path)
            shutil.rmtree(replaced, ignore_errors=True)
            pointer = self._folder / ".latest"
            pointer.write_text(path.name, encoding="utf-8")
            pointer.replace(self._folder / "latest")
            self._prune(protected_step)
        dist.barrier()

    def load_dense_weights(self, path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Dense weights alone, to build a model from. Collective."""
        weights = {name: torch.empty_like(value, dtype=torch.float32) for name, value in like.items()}
        if weights:
            self._load({"dense": weights}, path)
        return weights

    def load(self, model: Checkpointed, path: Path) -> None:
        """Weights and optimiser state. Collective."""
        state = {**_weights(model), **_optimizer_state(model)}
        self._load(state, path)
        for table in model.tables:
            table.load(state["tables"][table.name], state["table_optimizers"][table.name])
        model.engine.load(state["dense"], state["dense_optimizer"])

    def load_weights(self, model: Checkpointed, path: Path) -> None:
        """Weights alone: optimisers stay as they are. Collective."""
        state = _weights(model)
        self._load(state, path)
        for table in model.tables:
            table.load(state["tables"][table.name], None)
        model.engine.load_weights(state["dense"])

    def _load(self, state: dict[str, Any], path: Path) -> None:
        try:
            dcp.FileSystemReader(path).read_metadata()  # alone: dcp.load logs a traceback where it fails
            dcp.load(state, checkpoint_id=path)
        except (CheckpointException, PickleError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            # The collective wraps what went wrong on any rank, traceback included.
            cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            reason = " ".join(str(cause).split())[:120] or type(cause).__name__
            raise UserError(f"{path}: truncated or damaged ({reason}); {self._mend()}") from None

    def _mend(self) -> str:
        whole = sorted(path.parent.name for path in self._folder.glob("step-*/position.json"))
        return (
            f"write the name of another checkpoint ({', '.join(whole) or 'none is left'}) into "
            f"{self._folder / 'latest'}, or start anew with --overwrite"
        )

    def _prune(self, protected_step: int | None) -> None:
        steps = sorted(
            int(path.name.removeprefix("step-")) for path in self._folder.glob("step-*") if path.suffix == ""
        )
        for step in steps[: -self._keep]:
            if step != protected_step:
                shutil.rmtree(self.at_step(step))


def _weights(model: Checkpointed) -> dict[str, Any]:
    return {"tables": {table.name: table.weights() for table in model.tables}, "dense": model.dense_weights()}


def _optimizer_state(model: Checkpointed) -> dict[str, Any]:
    return {
        "table_optimizers": {table.name: table.optimizer_state() for table in model.tables},
        "dense_optimizer": model.engine.state(),
    }
