"""train.py without a configuration, and the configurations that go by their names."""

import inspect

import pytest

from tests import nursery
from tests.conftest import ROOT, environment
from uatmc_dist.cli.data import synthesize as command
from uatmc_dist.data.synthetic import synthesize

SHORT = ("clean.epochs=1", "adversarial.epochs=1", "model.embedding_dim=8")


def train_in(folder, ranks: int, *arguments: str):
    return nursery.run(ranks, [str(ROOT / "train.py"), *arguments], folder, environment(), timeout=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embedded")


def test_it_makes_its_catalog_and_trains(folder):
    done = train_in(folder, 2, *SHORT)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()[0]
    assert told.startswith("no configuration given: training the embedded default, configs/quickstart.yaml")
    assert "data/quickstart" in told and "uatmc data build" in told and done.stdout.count("no configuration given") == 1
    assert "done: runs/quickstart\n" in done.stdout


def test_again_it_takes_the_next_name(folder):
    done = train_in(folder, 1, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "done: runs/quickstart-2\n" in done.stdout
    named = train_in(folder, 1, "name=quickstart", *SHORT)
    assert named.returncode == 2 and "this run is finished" in named.stderr


def test_a_wrong_override_is_one_line(tmp_path):
    done = train_in(tmp_path, 1, "training.learning_rate=1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "training.learning_rate" in done.stderr


def test_a_catalog_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "data").write_text("a file")
    done = train_in(tmp_path, 2, *SHORT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "data/quickstart" in done.stderr, done.stderr


def test_the_catalog_is_the_one_that_the_command_makes_by_default():
    defaults = lambda made: {name: p.default for name, p in inspect.signature(made).parameters.items()}  # noqa: E731
    of_function, of_command = defaults(synthesize), defaults(command)
    for name in ("users", "items", "interactions", "visual_dim", "text_dim", "seed"):
        assert of_function[name] == of_command[name]


def test_configurations_go_by_their_names(folder, tmp_path):
    arguments = ["train", "quickstart", "name=named", f"catalog={folder}/data/quickstart", *SHORT]
    done = nursery.run(1, [str(ROOT / "tests/uatmc.py"), *arguments], tmp_path, environment(), timeout=600)
    assert done.returncode == 0 and "done: runs/named\n" in done.stdout, done.stderr
    wrong = nursery.run(1, [str(ROOT / "tests/uatmc.py"), "train", "defalt"], tmp_path, environment(), timeout=60)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "did you mean default?" in wrong.stderr and "quickstart" in wrong.stderr
