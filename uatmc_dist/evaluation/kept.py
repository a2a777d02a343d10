"""What a long measurement has found so far, on disk beside the run as long as it goes on, so that an interrupted one
resumes. Kept work is of the same model, catalog and options: a digest of them is in the names of its files.

    U  users    n  items of this rank    P  bounds    k  length of the ranking
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from uatmc_dist.config import METRIC_KS, AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.json_lines import add_line, read_lines
from uatmc_dist.parallel.item_parallel import max_over_ranks, num_ranks, own_rank
from uatmc_dist.whole_files import replacing, take_lock

_EVERY_SECONDS = 30.0
_VERSION = 3
"""Goes up with what a step of a certificate, a record of a list, a scene of an attack, or a part of mismatch means."""
_LOG = logging.getLogger("uatmc_dist")


def digest_of(runs: Iterable[Path], catalog: Catalog, options: Any) -> str:
    """Of what a measurement of these runs depends on."""
    files = [run / "model/model.safetensors" for run in runs]
    states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    words = json.dumps([_VERSION, options, catalog.digest, states])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


class KeptSweep:
    """How far the sweeps of a certificate are: each rank keeps its own items' counts, all ranks after the same step.
    Collective."""

    def __init__(self, folder: Path | None, digest: str = "") -> None:
        """`folder` None: nothing is kept."""
        self._folder, self._name = folder, f"certificate-{digest}-{own_rank()}of{num_ranks()}"
        self._saved_at = time.monotonic()

    @classmethod
    def of_run(cls, run: Path, catalog: Catalog, config: AttackConfig) -> "KeptSweep":
        return cls(run, digest_of([run], catalog, [config.k, config.epsilons]))

    def load(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """(steps done, arrays) that every rank has; None where there is nothing to go on with."""
        if self._folder is None:
            return None
        found = {step: arrays for step in self._steps() if (arrays := self._read(step)) is not None}
        # A rank that was stopped while the others wrote is one file behind them, and they still have that one.
        step = -int(max_over_ranks(torch.tensor([-max(found, default=0)])))
        is_missing = bool(max_over_ranks(torch.tensor([int(step not in found)])))
        for other in self._steps():
            if is_missing or other > step:  # of a start that came further: newer than all that this one will write
                self._file(other).unlink(missing_ok=True)
        return None if is_missing else (step, found[step])

    def save(self, step: int, **arrays: np.ndarray) -> None:
        """Every half a minute; a warning where the disk does not take it."""
        if self._folder is None:
            return
        is_due = time.monotonic() - self._saved_at > _EVERY_SECONDS
        if not int(max_over_ranks(torch.tensor([int(is_due)]))):
            return
        self._saved_at = time.monotonic()
        try:
            with replacing(self._file(step)) as unfinished, unfinished.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            return _warn(self._file(step), error)
        for old in sorted(self._steps())[:-2]:
            self._file(old).unlink(missing_ok=True)
        return None

    def drop(self) -> None:
        """Once certificate.json holds all of it; what other options left goes, too."""
        if self._folder is not None:
            for pattern in ("certificate-*.npz", ".certificate-*.npz.*"):
                for file in self._folder.glob(pattern):
                    file.unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}-{step}.npz"

    def _read(self, step: int) -> dict[str, np.ndarray] | None:
        try:
            with np.load(self._file(step)) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, BadZipFile):
            return None

    def _steps(self) -> set[int]:
        assert self._folder is not None
        return {int(file.stem.rsplit("-", 1)[1]) for file in self._folder.glob(f"{self._name}-*.npz")}


class KeptLists:
    """The lists that a full ranking has made, in the order of its users. Those of all ranks together, so that any
    number of them goes on; the first one writes, unless another process is writing them."""

    _RECORD = np.dtype([("ids", "<i8", max(METRIC_KS)), ("scores", "<f4", max(METRIC_KS))])

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        """`path` None: nothing is kept; otherwise collective."""
        self._path, self._writes, self._num_users = path, writes, 0
        self._file: int | None = None
        if path is None:
            return
        with contextlib.suppress(OSError):  # nothing is kept then
            self._file = os.open(path, os.O_RDWR | os.O_CREAT if writes else os.O_RDONLY)
        if self._file is not None and writes and not take_lock(self._file):
            self.close()
        records = 0 if self._file is None else os.fstat(self._file).st_size // self._RECORD.itemsize
        self._num_users = -int(max_over_ranks(torch.tensor([-records])))

    @classmethod
    def of_run(cls, run: Path, catalog: Catalog, split: str, writes: bool = True) -> "KeptLists":
        return cls(run / f"evaluation-{digest_of([run], catalog, [split, max(METRIC_KS)])}.lists", writes)

    def lists(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scores_Bk, ids_Bk) of these users, where all of them are kept."""
        if self._file is None or stop > self._num_users:
            return None
        size = self._RECORD.itemsize
        found = np.frombuffer(os.pread(self._file, (stop - start) * size, start * size), self._RECORD)
        return torch.from_numpy(found["scores"].copy()), torch.from_numpy(found["ids"].copy())

    def add(self, start: int, scores_Bk: torch.Tensor, ids_Bk: torch.Tensor) -> None:
        """Those of the users from `start` on; what is there of them is replaced. A warning where the disk does not take
        them."""
        if self._file is None or not self._writes:
            return
        before = start * self._RECORD.itemsize
        records = np.empty(len(ids_Bk), self._RECORD)
        records["ids"], records["scores"] = ids_Bk.numpy(), scores_Bk.numpy()
        try:
            os.ftruncate(self._file, before)
            with open(self._file, "r+b", closefd=False) as file:
                file.seek(before)
                file.write(records.tobytes())
        except OSError as error:
            assert self._path is not None
            _warn(self._path, error)
            self.drop()

    def drop(self) -> None:
        """Once evaluation.json holds all of it; what was kept of other models and splits goes, too."""
        if self._path is not None and self._file is not None and self._writes:
            for file in self._path.parent.glob("evaluation-*.lists"):
                file.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Keeps no more; another process may."""
        if self._file is not None:
            os.close(self._file)
        self._file = None


class KeptParts:
    """Finished parts of a measurement by name, a JSON line each. All ranks go on with the same parts; the first one
    writes."""

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        """`path` None: nothing is kept; otherwise collective."""
        self._path, self._writes = path, writes
        lines = [] if path is None else read_lines(path)
        if path is not None:  # a shared folder may show a rank less than another one
            lines = lines[: -int(max_over_ranks(torch.tensor([-len(lines)])))]
        self._done = {json.dumps(name): found for name, found in lines}

    @classmethod
    def of_run(
        cls, run: Path, verb: str, catalog: Catalog, options: Any, other: Path | None, writes: bool = True
    ) -> "KeptParts":
        """`other`: a run that this one is measured beside."""
        runs = [folder for folder in (run, other) if folder is not None]
        return cls(run / f"{verb}-{digest_of(runs, catalog, options)}.jsonl", writes)

    def found(self, name: Any, measured: Callable[[], Any]) -> Any:
        """What is kept of this part, or what `measured` gives, which is kept from now on; JSON values. A warning where
        the disk does not take it."""
        key = json.dumps(name)
        if key not in self._done:
            self._done[key] = measured()
            if self._path is not None and self._writes:
                try:
                    add_line(self._path, [name, self._done[key]])
                except UserError as error:
                    _LOG.warning("%s; an interrupted command would begin anew", error)
                    self._writes = False
        return self._done[key]

    def drop(self) -> None:
        """Once the figures are written; what other options left goes, too."""
        if self._path is not None and self._writes:
            verb = self._path.name.split("-")[0]
            for file in self._path.parent.glob(f"{verb}-*.jsonl"):
                file.unlink(missing_ok=True)


def _warn(file: Path, error: OSError) -> None:
    _LOG.warning("%s: cannot be written (%s); an interrupted command would begin anew", file, error.strerror)
