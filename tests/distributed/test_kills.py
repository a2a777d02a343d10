"""SIGKILL of a rank at drawn moments, a rank that stops answering, a full disk, lost files: the right result anyway.

Each run is compared with one that nothing disturbs on as many ranks, bit by bit: one thread a rank, and the sum of two
ranks has one order.

UATMC_KILLS=20 draws twenty moments instead of a few (docs/faults.log is such a run).
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import ROOT, environment, on_ranks, torchrun, train
from tests import nursery
from tests.distributed.kills import MOMENTS
from tests.distributed.test_resume import losses, wait_for_lines

SCRIPT = Path(__file__).parent / "kills.py"
NUM_KILLS = int(os.environ.get("UATMC_KILLS", "5"))
SECTIONS = {
    "clean": {"epochs": 4, "patience": 3, "objective": "full_catalog"},
    "adversarial": {"epochs": 5},
    "checkpoint": {"every_steps": 3},
}


@pytest.fixture(scope="module")
def config_of(tmp_path_factory, tiny_values):
    """Writes the configuration of a module-wide run; its folder is runs/tiny beside it."""

    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        values = {**tiny_values, **SECTIONS, "output_dir": str(folder / "runs")}
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return folder / "config.yaml"

    return write


@pytest.fixture(scope="module")
def undisturbed(config_of):
    """The run of so many ranks that nothing disturbs, trained when it is first asked for."""

    @functools.cache
    def trained(ranks: int) -> Path:
        config = config_of(f"undisturbed-{ranks}")
        on_ranks(ranks, "train.py", config)
        return config.parent / "runs/tiny"

    return trained


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """The same losses and metrics, each step once, and the same final weights."""
    assert losses(run) == losses(undisturbed)
    ours, truth = (load_file(folder / "model/model.safetensors") for folder in (run, undisturbed))
    assert ours.keys() == truth.keys()
    assert all(torch.equal(ours[name], weights) for name, weights in truth.items())
    leftovers = [path.name for path in (run / "checkpoints").iterdir() if path.suffix]
    assert not leftovers


def torchrun_plan(tmp_path: Path, config: Path, moments: list, signum: int, *, restarts: int) -> str:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"moments": moments, "signal": signum}))
    options = [f"--max-restarts={restarts}"]
    status, printed = torchrun(2, SCRIPT, plan, config, options=options).finish(timeout=90 * (len(moments) + 2))
    assert status == 0, printed
    return printed


def test_sigkill_at_any_moment(write_config, tmp_path, undisturbed):
    rng = random.Random(7)
    # Every moment at least once where there are enough of them; the first rank alone publishes.
    drawn = [*rng.sample(MOMENTS, min(len(MOMENTS), NUM_KILLS)), *rng.choices(MOMENTS, k=NUM_KILLS)][:NUM_KILLS]
    moments = [[moment, 0 if moment == "publishing" else rng.randrange(2), rng.randint(1, 4)] for moment in drawn]
    config = write_config(**SECTIONS)
    output = torchrun_plan(tmp_path, config, moments, signal.SIGKILL, restarts=NUM_KILLS)
    killed = [line for line in output.splitlines() if line.startswith("SIGKILL of rank")]
    print("\n".join(killed))
    assert len(killed) >= NUM_KILLS - 1, output  # the run may end before the last moment comes
    assert_same_run(tmp_path / "runs/tiny", undisturbed(2))


def test_a_rank_that_stops_answering_is_given_up(write_config, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "2")  # a stopped process does not hear SIGTERM
    config = write_config(distributed={"timeout_s": 15}, **SECTIONS)
    output = torchrun_plan(tmp_path, config, [["forward", 1, 5]], signal.SIGSTOP, restarts=1)
    assert "SIGSTOP of rank 1" in output and "lost the other ranks" in output, output
    assert_same_run(tmp_path / "runs/tiny", undisturbed(2))


def test_sigterm_saves_and_asks_to_be_started_again(write_config, tmp_path):
    config = write_config(clean={"epochs": 500, "patience": None})
    process = nursery.Started(nursery.script, ["train.py", str(config)], ROOT, environment())
    wait_for_lines(tmp_path / "runs/tiny", 5, process)
    process.terminate()
    status, output = process.finish(timeout=120)
    assert status == 75, output
    assert "the same command goes on" in output


def test_sigterm_does_not_wait_for_a_long_step(write_config, tmp_path, undisturbed):
    output = torchrun_plan(tmp_path, write_config(**SECTIONS), [["forward", 0, 8]], signal.SIGTERM, restarts=1)
    assert "interrupted in a step of more than 1 s" in output, output
    assert_same_run(tmp_path / "runs/tiny", undisturbed(2))


@pytest.fixture(scope="module")
def interrupted(config_of):
    """(configuration, copy of the run) of one rank that Ctrl-C ended after some twenty steps."""
    config = config_of("interrupted")
    process = torchrun(1, "train.py", config)
    wait_for_lines(config.parent / "runs/tiny", 20, process)
    process.ranks()[0].send_signal(signal.SIGINT)
    process.finish(timeout=60)
    return config, shutil.copytree(config.parent / "runs/tiny", config.parent / "copy")


@pytest.mark.parametrize("damage", ["truncated", "missing", "garbled", "a bit"])
def test_the_checkpoint_before_is_used_where_a_file_is_damaged(interrupted, undisturbed, damage):
    config, copy = interrupted
    run = config.parent / "runs/tiny"
    shutil.rmtree(run)
    shutil.copytree(copy, run)
    checkpoints = run / "checkpoints"
    latest = checkpoints / (checkpoints / "latest").read_text()
    file = next(latest.glob("*.distcp"))
    content = file.read_bytes()
    middle = len(content) // 2
    a_bit = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {"truncated": content[:1000], "garbled": bytes(len(content)), "a bit": a_bit}
    file.unlink()
    if damage in damaged:
        file.write_bytes(damaged[damage])
    done = train(config)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert latest.name in warning and "trying the checkpoint before it" in warning
    assert (file.name in warning and damage in ("truncated", "missing")) or "damaged" in warning
    assert "going on from" in done.stdout
    assert_same_run(run, undisturbed(1))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_loses_nothing(write_config, tmp_path, small_disk, undisturbed):
    config = write_config(output_dir=str(small_disk), **SECTIONS)
    run, ballast = small_disk / "tiny", small_disk / "ballast"
    process = torchrun(1, "train.py", config)
    wait_for_lines(run, 8, process)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    status, output = process.finish(timeout=120)
    assert status != 0, output
    told = [line for line in output.splitlines() if "No space left" in line or "could not be saved" in line]
    assert told and "free space" in output, output
    ballast.unlink()
    done = train(config)
    assert done.returncode == 0 and "going on from" in done.stdout, done.stdout + done.stderr
    assert_same_run(run, undisturbed(1))
