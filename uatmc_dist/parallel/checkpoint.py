"""Checkpoints that load at any world size: everything under global names, by torch.distributed.checkpoint.

checkpoints/step-N/     a whole one (it is renamed when complete); position.json says where the run stood, how many
                        bytes each file has, and their checksums
checkpoints/latest      name of the newest whole one

A save copies the state and is written in the background, by a process group of its own; one is written at a time.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from pickle import PickleError
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import AsyncStager

from uatmc_dist.checksums import checksums
from uatmc_dist.errors import UserError
from uatmc_dist.parallel.engine import DenseEngine
from uatmc_dist.parallel.process_group import any_rank

# What reading or writing a checkpoint may raise where the files or the disk are at fault.
_FILE_ERRORS = (CheckpointException, PickleError, OSError, RuntimeError, ValueError, KeyError, EOFError)


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing, truncated or unreadable."""


@lru_cache(maxsize=1)
def _writing_group(world: Any, timeout: timedelta) -> Any:
    """One for all trainings of a process: gloo has a thread for each group, which wakes a hundred times a second."""
    return dist.new_group(backend="gloo", timeout=timeout)


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
    """The checkpoints of one run. Every method is collective, but for `at_step`."""

    def __init__(self, folder: Path, keep: int, timeout: timedelta) -> None:
        self._folder, self._keep = folder, keep
        self._group = _writing_group(dist.group.WORLD, timeout)
        self._completed: Future[None] | None = None
        if dist.get_rank() == 0:
            self._clear_up()
        any_rank(0)

    def at_step(self, step: int) -> Path:
        return self._folder / f"step-{step}"

    def newest_first(self) -> Iterator[Path]:
        """What a run may go on from: the one that `latest` names, then those before it."""
        steps = self._steps()
        pointer = self._folder / "latest"
        if pointer.exists():
            named = pointer.read_text(encoding="utf-8").strip()
            newest = named.removeprefix("step-")
            if not newest.isdecimal():
                raise UserError(f"{pointer}: {named!r} is not the name of a checkpoint; write one into it, as step-100")
            steps = [step for step in steps if step < int(newest)] + [int(newest)]
        return (self.at_step(step) for step in reversed(steps))

    def position(self, path: Path) -> dict[str, Any]:
        """Where the run stood. Raises DamagedCheckpoint on every rank where a file is not what was written."""
        found, problem = _inspected(path)
        if any_rank(int(problem is not None)):
            raise DamagedCheckpoint(problem or f"{path}: damaged, as another rank sees it")
        return found["position"]

    def save(self, model: Checkpointed, position: dict[str, Any], protected_step: int | None) -> str | None:
        """Starts to write; `protected_step` (the best one so far) is never pruned.

        Returns what went wrong with the save before this one, if anything did, as `settle` does.
        """
        failure = self.settle()
        path = self.at_step(position["step"])
        partial = path.with_suffix(".partial")
        unprepared = self._prepare(partial) if dist.get_rank() == 0 else None
        if any_rank(int(unprepared is not None)):
            return unprepared or f"{partial}: cannot be written"
        writing: Future[Any] = dcp.async_save(  # type: ignore[assignment]
            {**_weights(model), **_optimizer_state(model)},
            # All tensors are on the CPU by then: looking ahead would open a context on GPU 0 from every rank.
            storage_writer=dcp.FileSystemWriter(partial, per_thread_copy_ahead=0),
            process_group=self._group,
            async_stager=_CopyToHost(),
        )
        completed = self._completed = Future()
        writing.add_done_callback(lambda written: self._complete(written, completed, partial, position, protected_step))
        return failure

    def settle(self) -> str | None:
        """Waits for the save that is being written. None where all is well; else one line that says what went wrong,
        the same kind on every rank. What was saved before is still there."""
        if self._completed is None:
            return None
        error = self._completed.exception()
        self._completed = None
        if not any_rank(int(error is not None)):
            return None
        reason = _reason(error) if error is not None else "another rank failed"
        return f"{self._folder}: a checkpoint could not be saved ({reason})"

    def load_dense_weights(self, path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Dense weights alone, to build a model from."""
        weights = {name: torch.empty_like(value, dtype=torch.float32) for name, value in like.items()}
        if weights:
            self._load({"dense": weights}, path)
        return weights

    def load(self, model: Checkpointed, path: Path) -> None:
        """Weights and optimiser state."""
        state = {**_weights(model), **_optimizer_state(model)}
        self._load(state, path)
        for table in model.tables:
            table.load(state["tables"][table.name], state["table_optimizers"][table.name])
        model.engine.load(state["dense"], state["dense_optimizer"])

    def load_weights(self, model: Checkpointed, path: Path) -> None:
        """Weights alone: optimisers stay as they are."""
        state = _weights(model)
        self._load(state, path)
        for table in model.tables:
            table.load(state["tables"][table.name], None)
        model.engine.load_weights(state["dense"])

    def _load(self, state: dict[str, Any], path: Path) -> None:
        try:
            dcp.FileSystemReader(path).read_metadata()  # alone: dcp.load logs a traceback where it fails
            dcp.load(state, checkpoint_id=path)
        except _FILE_ERRORS as error:
            raise DamagedCheckpoint(f"{path}: damaged ({_reason(error)})") from None

    def _prepare(self, partial: Path) -> str | None:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except OSError as error:
            return f"{partial}: cannot be written ({error.strerror})"
        return None

    def _complete(
        self,
        written: "Future[Any]",
        done: "Future[None]",
        partial: Path,
        position: dict[str, Any],
        protected_step: int | None,
    ) -> None:
        """In the writing thread. The first rank's part of a save ends when all ranks have written, so that it alone
        makes the checkpoint a whole one."""
        error = written.exception()
        try:
            if dist.get_rank() == 0:
                if error is None:
                    self._publish(partial, position, protected_step)
                else:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError as failed:
            error = failed
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def _publish(self, partial: Path, position: dict[str, Any], protected_step: int | None) -> None:
        files = list(partial.iterdir())
        written = {
            "position": position,
            "bytes": {file.name: file.stat().st_size for file in files},
            "checksums": {file.name: checksums(file) for file in files},
        }
        _write(partial / "position.json", json.dumps(written))
        path, replaced = partial.with_suffix(""), partial.with_suffix(".replaced")
        if path.exists():  # a phase begins at the step where the one before it ended
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
        _write(self._folder / ".latest", path.name)
        (self._folder / ".latest").replace(self._folder / "latest")
        # Later ones are what a run that went back to this step has given up; they do not count, and are overwritten.
        steps = [step for step in self._steps() if step <= position["step"]]
        for step in steps[: -self._keep]:
            if step != protected_step:
                shutil.rmtree(self.at_step(step))

    def _clear_up(self) -> None:
        """What a killed run left half done."""
        for replaced in self._folder.glob("step-*.replaced"):
            if not replaced.with_suffix("").exists():
                replaced.rename(replaced.with_suffix(""))
            else:
                shutil.rmtree(replaced)
        for partial in self._folder.glob("step-*.partial"):
            shutil.rmtree(partial)

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("step-") for path in self._folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())


class _CopyToHost(AsyncStager):
    """Staging of a save. PyTorch's own stager does not know the sharded tensors of TorchRec's tables."""

    _synchronize_after_execute = False

    def stage(self, state_dict: Any) -> Any:
        if isinstance(state_dict, dict):
            return {name: self.stage(value) for name, value in state_dict.items()}
        on_cpu = state_dict.cpu()  # the clone is for what is on the CPU already: a GPU has no room for two
        return on_cpu.clone(memory_format=torch.preserve_format) if on_cpu is state_dict else on_cpu

    def synchronize_staging(self) -> None:
        return None

    def close(self) -> None:
        return None


def _inspected(path: Path) -> tuple[dict[str, Any], str | None]:
    """(content of position.json, what is wrong with the files if anything is)."""
    file = path / "position.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        sizes = found["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"{file}: missing or damaged ({_reason(error)})"
    sums = found.get("checksums", {})
    for index, (name, size) in enumerate(sizes.items()):
        if not (path / name).exists():
            return {}, f"{path / name}: missing"
        if (have := (path / name).stat().st_size) != size:
            return {}, f"{path / name}: truncated, {have} of {size} bytes"
        is_mine = index % dist.get_world_size() == dist.get_rank()
        if is_mine and name in sums and checksums(path / name) != sums[name]:
            return {}, f"{path / name}: damaged, its bytes are not those that were written"
    return found, None


def _write(path: Path, text: str) -> None:
    """On the disk when it returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    # The collective wraps what went wrong on any rank, traceback included.
    cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
    return " ".join(str(cause).split())[:120] or type(cause).__name__


def _weights(model: Checkpointed) -> dict[str, Any]:
    return {"tables": {table.name: table.weights() for table in model.tables}, "dense": model.dense_weights()}


def _optimizer_state(model: Checkpointed) -> dict[str, Any]:
    return {
        "table_optimizers": {table.name: table.optimizer_state() for table in model.tables},
        "dense_optimizer": model.engine.state(),
    }
