"""The folder of a run: the files it leaves behind, and whether a command may write into it.

config.yaml  environment.json  metrics.jsonl  tensorboard/  checkpoints/  model/
evaluation.json  attack.json  certificate.json  certificate.parquet  mismatch.json  report/index.html
"""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from uatmc_dist.config import Config, dump_config, read_yaml
from uatmc_dist.errors import UserError
from uatmc_dist.whole_files import replacing, take_lock

_RECORDED_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "deepspeed", "triton", "pyarrow", "numpy")
_ENVIRONMENT = "environment.json"
"""Whoever trains has a lock on it."""
_LOCK_WAIT_S = 100
_LOG = logging.getLogger("uatmc_dist")


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"
        self.metrics = path / "metrics.jsonl"
        self._config = path / "config.yaml"
        self._lock: IO[str] | None = None

    @property
    def is_finished(self) -> bool:
        return (self.model / "model.safetensors").exists()

    def is_of_launch(self, launch: str | None) -> bool:
        """Whether this start of the ranks has begun the run itself: then --overwrite has done its work."""
        return launch is not None and self._environment().get("launch") == launch

    def check(self, config: Config, catalog: str, overwrite: bool) -> None:
        """UserError where the command would overwrite a finished run, or go on with other options or on another
        catalog. `catalog`: its digest."""
        if overwrite or not self.path.exists():
            return
        self._refuse_finished()
        if self._config.exists():
            # An option that a later version brought had its default.
            defaults = _flat(Config(name=config.name, catalog=config.catalog).model_dump(mode="json"))
            before = defaults | _flat(read_yaml(self._config))
            now = _flat(config.model_dump(mode="json"))
            changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            if changed:
                told = ", ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
                raise UserError(
                    f"{self.path}: an unfinished run with other options ({told}); repeat its command, give another "
                    "name=... or --overwrite"
                )
            if self._environment().get("catalog", catalog) != catalog:
                raise UserError(
                    f"{self.path}: an unfinished run, and {config.catalog} is not the catalog that it began with; "
                    "bring that one back, give another name=... or --overwrite"
                )
        elif any(entry.name != _ENVIRONMENT for entry in self.path.iterdir()):
            raise UserError(f"{self.path}: not empty and not a run; give another name=... or output_dir=...")

    def prepare(self, config: Config, environment: dict[str, Any], overwrite: bool) -> None:
        """Makes the folder, keeps others from training into it, and writes config.yaml and environment.json (rank 0).

        Raises UserError where it cannot be written, or another process trains into it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if not overwrite:
                self._refuse_finished()  # by whom this one has waited for
            elif self._config.exists():
                for entry in self.path.iterdir():
                    if entry.name != _ENVIRONMENT:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self._config.write_text(dump_config(config), encoding="utf-8")
            (self.path / _ENVIRONMENT).write_text(json.dumps(environment, indent=2), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); free space, or give another output_dir=..."
            ) from None

    def _environment(self) -> dict[str, Any]:
        """Nothing where it is not written yet."""
        file = self.path / _ENVIRONMENT
        return (self.read_json(_ENVIRONMENT) or {}) if file.exists() and file.stat().st_size else {}

    def _refuse_finished(self) -> None:
        if self.is_finished:
            raise UserError(f"{self.path}: this run is finished; give another name=... or --overwrite")

    def _take_lock(self) -> None:
        """Until `release`, or the end of the process. A machine that was lost may hold it a while on a shared disk."""
        self._lock = (self.path / _ENVIRONMENT).open("a")
        for second in range(_LOCK_WAIT_S):
            if take_lock(self._lock.fileno()):
                return
            if second == 0:
                _LOG.warning(f"{self.path}: another process trains into it; waiting for it, {_LOCK_WAIT_S} s at most")
            time.sleep(1)
        self.release()
        raise UserError(f"{self.path}: another process trains into it; let it end, or give another name=...")

    def release(self) -> None:
        """Others may train into it again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_json(self, name: str, values: dict[str, Any]) -> Path:
        """Whole or not at all: an interruption leaves what was there."""
        text = json.dumps(values, indent=2) + "\n"
        return self.write(name, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Whole or not at all, also where two processes write the same file. UserError where it cannot be written."""
        path = self.path / name
        try:
            with replacing(path) as unfinished:
                write(unfinished)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space") from None
        return path

    def read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}); make it again") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file."""
        lines = []
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                lines.append(json.loads(line))
            except ValueError:
                raise UserError(f"{self.metrics}: line {number} is not JSON; finish the training run") from None
        return lines


def opened_run(path: Path) -> RunFolder:
    """The folder of a run that exists. UserError otherwise."""
    run = RunFolder(path)
    if not (path / "config.yaml").exists():
        raise UserError(f"{path}: not a run (config.yaml is missing); give the folder that training wrote")
    return run


def launch_id() -> str | None:
    """torchrun's --rdzv_id, which its restarts keep; None where there is none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def environment(device: str, world_size: int, seed: int, catalog: str) -> dict[str, Any]:
    """`catalog`: its digest."""
    versions: dict[str, str | None] = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": device,
        "machine": platform.machine(),
        "world_size": world_size,
        "git_commit": _git_commit(),
        "launch": launch_id(),
        "seed": seed,
        "catalog": catalog,
    }


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
