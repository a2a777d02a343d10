"""Interrupted, killed, resumed on other numbers of ranks: the same losses as an undisturbed run."""

import json
import signal
import time
from pathlib import Path

import pytest

from conftest import ONE_USER, on_ranks, torchrun, train
from tests.nursery import Started

LONG = {"epochs": 4, "patience": 3, "objective": "full_catalog"}
SECTIONS = {"clean": LONG, "adversarial": {"epochs": 6}, "checkpoint": {"every_steps": 4}}


def losses(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    machine = ("pairs_per_s", "step_s")
    return [{k: value for k, value in line.items() if k not in machine and not k.endswith("_bytes")} for line in lines]


def assert_same_but_for_rounding(ours: list[dict], expected: list[dict]) -> None:
    """For runs on other numbers of ranks, which sum in another order.

    An optimiser moves a weight by lr = 0.1 times the relative error of its gradient at most, some 16 roundings of 6e-8:
    1e-7 a step, 1e-5 in the hundred steps of these runs if all of it adds up.
    """
    assert [line["step"] for line in ours] == [line["step"] for line in expected]
    for line, truth in zip(ours, expected, strict=True):
        for key, value in truth.items():
            if isinstance(value, float):
                value = pytest.approx(value, **({"abs": 2 * ONE_USER} if "valid/" in key else {"rel": 2e-5}))
            assert line[key] == value, (key, truth["step"])


def wait_for_lines(run: Path, count: int, process: Started) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= count):
        assert process.poll() is None, process.printed()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def undisturbed(write_config, tmp_path):
    config = write_config(name="undisturbed", **SECTIONS)
    on_ranks(2, "train.py", config)
    return losses(tmp_path / "runs/undisturbed")


def test_sigterm_then_the_same_command_on_other_numbers_of_ranks(write_config, tmp_path, undisturbed):
    config = write_config(name="stopped", engine={"zero_stage": 1}, **SECTIONS)
    run = tmp_path / "runs/stopped"
    for ranks, lines, signum in ((2, 12, signal.SIGTERM), (1, 45, signal.SIGINT)):
        process = torchrun(ranks, "train.py", config)
        wait_for_lines(run, lines, process)
        # What a terminal or a scheduler does: torchrun and its ranks all get the signal.
        for rank in process.ranks():
            rank.send_signal(signum)
        status, output = process.finish(timeout=120)
        assert status != 0 and "the same command goes on" in output, output
        assert not (run / "model/model.safetensors").exists()
    output = on_ranks(4, "train.py", config)
    assert "going on from" in output
    assert_same_but_for_rounding(losses(run), undisturbed)


def test_damaged_finished_and_changed_runs_are_refused(write_config, tmp_path):
    config = write_config(checkpoint={"every_steps": 4})
    run = tmp_path / "runs/tiny"
    process = torchrun(1, "train.py", config, "clean.epochs=200", "clean.patience=null")
    wait_for_lines(run, 10, process)
    process.ranks()[0].send_signal(signal.SIGINT)
    process.finish(timeout=60)

    def refused(*overrides: str) -> str:
        done = train(config, *overrides)
        assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return line

    long = ("clean.epochs=200", "clean.patience=null")
    assert "clean.epochs" in refused()
    for shard in run.glob("checkpoints/*/*.distcp"):
        shard.write_bytes(shard.read_bytes()[:1000])
    line = refused(*long)
    assert "no checkpoint is whole" in line and ".distcp: truncated, 1000 of " in line
    (run / "checkpoints/latest").write_text("the best")
    assert "'the best' is not the name of a checkpoint" in refused(*long)
    assert train(config, "--overwrite").returncode == 0
    assert "finished" in refused()
