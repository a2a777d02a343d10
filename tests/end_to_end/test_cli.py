"""The command line as a user meets it: what it prints, and one clear line for what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import ROOT, run_uatmc, train
from tests.unit.mmrec_source import write_source
from uatmc_dist.cli import main
from uatmc_dist.config import iterate_options

TRAIN = [sys.executable, "train.py"]


def call(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_import_and_describe(tmp_path):
    source = write_source(tmp_path / "source", widths=(7, 3), dtype=np.float16)
    done = run_uatmc("data", "import-mmrec", source, tmp_path / "out", "--visual-encoder", "camera")
    assert done.returncode == 0 and "12 users, 9 items" in done.stdout and "0 duplicated" in done.stdout
    done = run_uatmc("data", "describe", tmp_path / "out")
    for word in ("density", "camera", "float16", "all-zero", "duplicates", "quantile"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["data", "import-mmrec", "/nowhere", "/tmp/x"], "/nowhere: no such folder"),
        (["data", "describe", "/nowhere"], "no catalog here"),
        (["data", "synthesize", "/tmp/never", "--interactions", "3"], "--interactions 3"),
        (["evaluate", "/nowhere"], "not a run"),
        (["attack", "/nowhere"], "not a run"),
        (["compare", "/nowhere"], "not a run"),
    ],
)
def test_wrong_input_is_one_line_and_a_non_zero_exit(arguments, expected, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["uatmc", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    _, stderr = capfd.readouterr()
    assert stderr.count("\n") == 1 and stderr.startswith("error: ") and expected in stderr


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["configs/nowhere.yaml"], "no such file"),
        (["configs/quickstart.yaml", "training.learning_rate=1"], "did you mean training.lr?"),
        (["configs/quickstart.yaml", "name=../../x", "output_dir=/tmp/never"], "the name of one folder is needed"),
        (["configs/quickstart.yaml", "catalog=/nowhere", "output_dir=/tmp/never"], "/nowhere: no catalog here"),
        (["configs/quickstart.yaml", "start_from=/nowhere", "catalog={catalog}"], "/nowhere: no trained model"),
    ],
)
def test_training_refuses_wrong_input_in_one_line(arguments, expected, tiny_catalog):
    done = call(*TRAIN, *(argument.format(catalog=tiny_catalog) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and expected in done.stderr


def test_help_lists_every_option_with_its_docstring():
    done = call(*TRAIN, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for key, _, _, docstring in iterate_options():
        assert key in text and docstring in text


def test_doctor_is_content_here():
    done = run_uatmc("doctor", check=False)
    assert done.returncode == 0 and "torchrec" in done.stdout and "all well" in done.stdout


@pytest.fixture(scope="module")
def worthless(tmp_path_factory, tiny_values) -> tuple[Path, str]:
    """A run that has learned nothing, and what its training printed."""
    folder = tmp_path_factory.mktemp("worthless")
    values = {**tiny_values, "output_dir": str(folder), "training": {"batch_size": 512, "lr": 1e-9}}
    values |= {"tables": {"lr": 1e-9}, "clean": {"epochs": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    done = train(folder / "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "tiny", done.stdout


def test_training_ends_with_the_kept_epoch_and_what_the_model_is_below(worthless):
    run, told = worthless
    assert "kept: epoch " in told and " of 2 (valid recall@20 0." in told
    red = next(line for line in told.splitlines() if line.startswith("below "))
    assert "EASE (0." in red and red.endswith("on the valid split; try configs/default.yaml, or uatmc tune")
    assert told.index("kept: ") < told.index("below ") < told.index(f"done: {run}")


def test_a_model_with_a_changed_byte_is_not_loaded(worthless, tmp_path):
    run = shutil.copytree(worthless[0], tmp_path / "run")
    content = bytearray((run / "model/model.safetensors").read_bytes())
    content[-64:] = b"\xff" * 64
    (run / "model/model.safetensors").write_bytes(content)
    done = run_uatmc("evaluate", run, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "model.safetensors: damaged, its bytes are not those that were written" in done.stderr


def test_evaluation_shows_the_model_beside_the_baselines(worthless, tiny_catalog):
    run, _ = worthless
    done = run_uatmc("evaluate", run)
    assert done.returncode == 0, done.stderr
    for title in ("random", "popularity", "photo kNN", "text kNN", "photo and text kNN", "EASE", "Gini", "lambda"):
        assert title in done.stdout
    red = next(line for line in done.stdout.splitlines() if line.startswith("below "))
    assert "EASE (0." in red and "on the test split; try" in red
    evaluation = json.loads((run / "evaluation.json").read_text())
    baselines = {"random", "popularity", "knn_visual", "knn_text", "knn_both", "ease"}
    assert baselines <= evaluation["baselines"].keys() and "ease" in evaluation["below"]
    for figures in (evaluation, *evaluation["baselines"].values()):
        assert {"recall@20", "ndcg@5", "coverage@20", "gini@20", "cold_share@20", "cold_recall@20"} <= figures.keys()
    catalog = json.loads((tiny_catalog / "baselines/test.json").read_text())
    assert catalog["figures"]["ease"] == evaluation["baselines"]["ease"]
