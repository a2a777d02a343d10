"""Fixtures that several rooms share: a tiny catalog, a configuration for it, and torchrun."""

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings

if not torch.cuda.is_available():
    # Triton interprets its kernels on the CPU then. Read when Triton is first imported, which other packages do too.
    os.environ["TRITON_INTERPRET"] = "1"

from tests import nursery
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.synthetic import synthesize

# Before anything imports huggingface_hub, which looks at it once.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parent.parent
UATMC = [sys.executable, str(ROOT / "tests/uatmc.py")]

USERS = 230
ONE_USER = 1 / USERS
"""What one user adds to a metric of the tiny catalog at most: where weights differ by rounding, a near-tie may fall the
other way, and that user's items are found or not."""

settings.register_profile("shared", deadline=None)  # machines are shared and noisy
settings.load_profile("shared")

TINY = {
    "name": "tiny",
    "model": {"embedding_dim": 8, "visual_hidden": [16, 12], "text_hidden": [12]},
    "tables": {"lr": 0.1},
    "training": {"batch_size": 128, "lr": 0.01},
    "clean": {"epochs": 1},
    "evaluation": {"users_per_batch": 100},
    "logging": {"every_steps": 1},
}


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all modules have been imported: `lasting_imports`
    if "PYTEST_XDIST_WORKER" not in os.environ:
        open_until_the_end = contextlib.ExitStack()
        open_until_the_end.enter_context(nursery.opened())
        config.add_cleanup(open_until_the_end.close)


@pytest.fixture(scope="session", autouse=True)
def lasting_imports() -> None:
    """What all modules have imported by now is not looked through for garbage again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_catalog(tmp_path_factory) -> Path:
    """USERS users, 203 items (not divisible by 2 or 4), features of widths 20 and 12."""
    path = tmp_path_factory.mktemp("catalog") / "tiny"
    synthesize(path, users=USERS, items=203, interactions=1600, visual_dim=20, text_dim=12, seed=3)
    Catalog(path)
    return path


@pytest.fixture(scope="session")
def tiny_values(tiny_catalog) -> dict:
    """TINY for that catalog."""
    return {**TINY, "catalog": str(tiny_catalog)}


@pytest.fixture
def write_config(tmp_path, tiny_values):
    """Writes a YAML of TINY with changes by section; returns its path."""

    def write(**sections) -> Path:
        values = {**tiny_values, "output_dir": str(tmp_path / "runs")}
        for name, change in sections.items():
            values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
        path = tmp_path / f"{values['name']}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def environment(ranks: int = 1) -> dict[str, str]:
    """One thread a rank, whatever started it: with more of them sums have another order. More ranks than GPUs go to the
    CPU."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if 0 < torch.cuda.device_count() < ranks else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **hidden}


def on_ranks(number: int, script: str | Path, *arguments: str | Path, timeout: int = 300) -> str:
    """Runs a script of this repository on so many gloo ranks; returns what they printed."""
    given = [str(script), *map(str, arguments)]
    done = nursery.run(number, given, ROOT, environment(number), timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def torchrun(number: int, *arguments: str | Path, options: Sequence[str] = ()) -> nursery.Started:
    """The same under torchrun, which is started and may fail."""
    words = ["--standalone", f"--nproc_per_node={number}", *options, *map(str, arguments)]
    return nursery.Started(nursery.torchrun, words, ROOT, environment(number))


def train(*arguments: str | Path) -> subprocess.CompletedProcess:
    """train.py on one rank; it may fail."""
    return nursery.run(1, ["train.py", *map(str, arguments)], ROOT, environment(), timeout=600)


def run_uatmc(*arguments: str | Path, check: bool = True, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """One `uatmc` command."""
    done = nursery.run(1, [UATMC[-1], *map(str, arguments)], folder, environment(), timeout=600)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
