"""What a long measurement has found so far, on disk beside the run as long as it goes on, so that an interrupted one
resumes. Kept work is of the same model, catalog and options: a digest of them is in the names of its files.

    U  users    n  items of this rank    P  bounds    k  length of the ranking
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uatmc_dist.config import METRIC_KS, AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.parallel.item_parallel import max_over_ranks, num_ranks, own_rank
from uatmc_dist.whole_files import replacing

_EVERY_SECONDS = 30.0


def digest_of(runs: Iterable[Path], catalog: Catalog, options: Any) -> str:
    """Of what a measurement of these runs depends on."""
    files = [run / "model/model.safetensors" for run in runs]
    states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    words = json.dumps([options, catalog.digest, states])
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
        steps = self._steps()
        # A rank that was stopped while the others wrote is one file behind them, and they still have that one.
        step = -int(max_over_ranks(torch.tensor([-max(steps, default=0)])))
        missing = int(max_over_ranks(torch.tensor([int(step not in steps)])))
        if missing:
            return None
        with np.load(self._file(step)) as found:
            return step, dict(found)

    def save(self, step: int, **arrays: np.ndarray) -> None:
        """Every half a minute. Raises UserError where the disk does not take it."""
        if self._folder is None:
            return
        is_due = time.monotonic() - self._saved_at > _EVERY_SECONDS
        if not int(max_over_ranks(torch.tensor([int(is_due)]))):
            return
        try:
            with replacing(self._file(step)) as unfinished, unfinished.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(f"{self._file(step)}: cannot be written ({error.strerror}); free space") from None
        for old in sorted(self._steps())[:-2]:
            self._file(old).unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def drop(self) -> None:
        """Once certificate.json holds all of it; what other options left goes, too."""
        if self._folder is not None:
            for file in self._folder.glob("certificate-*.npz"):
                file.unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}-{step}.npz"

    def _steps(self) -> set[int]:
        assert self._folder is not None
        return {int(file.stem.rsplit("-", 1)[1]) for file in self._folder.glob(f"{self._name}-*.npz")}


class KeptLists:
    """The lists that a full ranking has made, in the order of its users. Those of all ranks together, so that any
    number of them goes on; the first one writes."""

    _RECORD = np.dtype([("ids", "<i8", max(METRIC_KS)), ("scores", "<f4", max(METRIC_KS))])

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        """`path` None: nothing is kept; otherwise collective."""
        self._path, self._writes, self._num_users = path, writes, 0
        if path is not None:
            records = path.stat().st_size // self._RECORD.itemsize if path.exists() else 0
            self._num_users = -int(max_over_ranks(torch.tensor([-records])))

    @classmethod
    def of_run(cls, run: Path, catalog: Catalog, split: str, writes: bool = True) -> "KeptLists":
        return cls(run / f"evaluation-{digest_of([run], catalog, split)}.lists", writes)

    def lists(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scores_Bk, ids_Bk) of these users, where all of them are kept."""
        if self._path is None or stop > self._num_users:
            return None
        found = np.fromfile(self._path, self._RECORD, stop - start, offset=start * self._RECORD.itemsize)
        return torch.from_numpy(found["scores"].copy()), torch.from_numpy(found["ids"].copy())

    def add(self, start: int, scores_Bk: torch.Tensor, ids_Bk: torch.Tensor) -> None:
        """Those of the users from `start` on; what is there of them is replaced. Raises UserError where the disk does
        not take it."""
        if self._path is None or not self._writes:
            return
        before = start * self._RECORD.itemsize
        if (self._path.stat().st_size if self._path.exists() else 0) < before:
            return  # another process that ranks the same run has finished: what is there now has no beginning
        records = np.empty(len(ids_Bk), self._RECORD)
        records["ids"], records["scores"] = ids_Bk.numpy(), scores_Bk.numpy()
        try:
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.truncate(before)
                file.seek(0, os.SEEK_END)
                file.write(records.tobytes())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); free space") from None

    def drop(self) -> None:
        """Once evaluation.json holds all of it; what was kept of other models and splits goes, too."""
        if self._path is not None and self._writes:
            for file in self._path.parent.glob("evaluation-*.lists"):
                file.unlink(missing_ok=True)
