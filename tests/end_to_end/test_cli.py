"""The command line as a user meets it: what it prints, and one clear line for what is wrong."""

import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT, UATMC
from tests.unit.mmrec_source import write_source
from uatmc_dist.cli import main
from uatmc_dist.config import iterate_options

TRAIN = [sys.executable, "train.py"]


def call(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_import_and_describe(tmp_path):
    source = write_source(tmp_path / "source", widths=(7, 3), dtype=np.float16)
    done = call(*UATMC, "data", "import-mmrec", source, tmp_path / "out", "--visual-encoder", "camera")
    assert done.returncode == 0 and "12 users, 9 items" in done.stdout and "0 duplicated" in done.stdout
    done = call(*UATMC, "data", "describe", tmp_path / "out")
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
    done = call(*UATMC, "doctor")
    assert done.returncode == 0 and "torchrec" in done.stdout and "all well" in done.stdout
