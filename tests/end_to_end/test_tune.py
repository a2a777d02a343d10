"""`uatmc tune`: killed and resumed, several processes on one study, pruning, two objectives, what it refuses."""

import csv
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from conftest import ROOT, UATMC, run_uatmc
from uatmc_dist.config import load_config
from uatmc_dist.errors import UserError
from uatmc_dist.search_space import read_space

SPACE = {"tables.lr": {"low": 0.01, "high": 0.3, "log": True}, "model.embedding_dim": {"choices": [4, 8]}}


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


def trials_of(study: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((study / "trials.csv").open()))


def test_a_study_is_killed_and_goes_on(write_config, tmp_path, space):
    config = write_config(clean={"objective": "full_catalog", "epochs": 3})
    study = tmp_path / "study"
    arguments = [*map(str, ("tune", config, "--trials", 4, "--space", space, "--study", study))]
    process = subprocess.Popen([*UATMC, *arguments], cwd=ROOT, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(study.glob("trials/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    training = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not psutil.wait_procs(training, timeout=60)[1], "a trial goes on without its study"
    done = run_uatmc(*arguments)
    assert "4/4 trials" in done.stdout and "ETA" in done.stdout
    trials = trials_of(study)
    ended = [trial for trial in trials if trial["state"] in ("complete", "pruned")]
    assert len(ended) == 4 and all(trial["run"] for trial in ended)
    best = max((trial for trial in ended if trial["state"] == "complete"), key=lambda t: float(t["valid recall@20"]))
    tuned = load_config(study / "best.yaml")
    assert tuned.tables.lr == pytest.approx(float(best["tables.lr"])) and tuned.name == "tiny-tuned"
    assert {path.stem for path in (study / "plots").glob("*.html")} == {"history", "curves", "slices"}
    again = run_uatmc(*arguments)
    assert "4 of 4 trials done" in again.stdout and len(trials_of(study)) == len(trials)
    refused = run_uatmc(*arguments, "clean.epochs=2", check=False)
    assert refused.returncode == 2 and "a study of other options" in refused.stderr


def test_accuracy_against_attackability_is_a_pareto_front(write_config, tmp_path):
    config = write_config(clean={"epochs": 1}, adversarial={"epochs": 1}, attack={"num_targets": 5, "apgd_steps": 2})
    space, study = tmp_path / "space.yaml", tmp_path / "study"
    space.write_text(yaml.safe_dump({"adversarial.adversary": {"choices": ["uat", "certified"]}}))
    run_uatmc("tune", config, "--trials", 2, "--space", space, "--study", study)
    trials = trials_of(study)
    assert len(trials) == 2 and all(0 <= float(trial["hit@50 after apgd"]) <= 1 for trial in trials)
    assert (study / "plots/pareto.html").exists() and list((study / "pareto").glob("*.yaml"))


def test_a_trial_that_fails_is_told_and_counted(write_config, tmp_path):
    config, space, study = write_config(), tmp_path / "space.yaml", tmp_path / "study"
    space.write_text(yaml.safe_dump({"tables.init_std": {"choices": [1e30]}}))
    done = run_uatmc("tune", config, "--trials", 1, "--space", space, "--study", study, check=False)
    assert done.returncode == 2 and "no trial finished" in done.stderr and "NaN or Inf" in done.stdout


@pytest.mark.parametrize(
    "content, told",
    [
        ("table.lr: {low: 1, high: 2}", "unknown option table.lr; did you mean tables.lr?"),
        ("tables.lr: {low: 2, high: 1}", "tables.lr: give low and high, low below high, or choices"),
        ("tables.lr: {low: 0, high: 1, log: true}", "a logarithmic range begins above 0"),
        ("tables.lr: {low: 0, high: 1, choices: [1]}", "choices go without"),
        ("tables.lr: {lo: 0, high: 1}", "lo: Extra inputs"),
    ],
)
def test_a_search_space_that_makes_no_sense_is_named(tmp_path, content, told):
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="space") as refused:
        read_space(path)
    assert told in str(refused.value)
