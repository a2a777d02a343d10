"""Configuration: overrides, unknown keys, checks, and the files in configs/."""

from pathlib import Path

import pytest

from conftest import ROOT
from uatmc_dist.config import Config, dump_config, iterate_options, load_config
from uatmc_dist.errors import UserError


@pytest.fixture
def minimal(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\ncatalog: b\n")
    return path


def test_overrides_are_typed_and_reach_every_depth(minimal):
    config = load_config(minimal, ["training.lr=3e-4", "attack.epsilons=[0.1, 0.2]", "clean.patience=null", "seed=7"])
    assert config.training.lr == 3e-4
    assert config.attack.epsilons == [0.1, 0.2]
    assert config.clean.patience is None
    assert config.seed == 7


@pytest.mark.parametrize(
    "override, expected",
    [
        ("training.learning_rate=1", "did you mean training.lr?"),
        ("trainin.lr=1", "did you mean training?"),
        ("adversarial.epsilom=1", "did you mean adversarial.epsilon?"),
        ("batch_size=3", "did you mean training.batch_size?"),
        ("training.lr=-1", "training.lr"),
        ("attack.epsilons=[0.1, 0.1]", "attack.epsilons [0.1, 0.1] names one twice"),
        ("attack.seeds=[-1]", "attack.seeds"),
        ("attack.seeds=[]", "attack.seeds is empty"),
        ("attack.attacks=[pdg]", "attack.attacks"),
        ("attack.norm=l1", "attack.norm"),
        ("attack.budget=large", "attack.budget"),
        ("training.lr=nan", "training.lr"),
        ("training.batch_size=big", "training.batch_size"),
        ("adversarial.adversary=uatmc", "adversarial.adversary"),
        ("adversarial={at: encoder, adversary: certified}", "set adversarial.at=projected"),
        ("adversarial={at: encoder, budget: any_content}", "set adversarial.at=projected"),
        ("adversarial.at=encoder", "set adversarial.adversary=uat"),
        ("engine.precision=bf16", "zero_stage"),
        ("evaluation.metric=recal@20", "did you mean recall@20?"),
        ("model.content=false", None),
        ("clean.epochs=0", "start_from"),
        ("start_from=runs/x", "adversarial.epochs"),
        ("name.x=1", "name is not a section"),
        ("training.lr", "not an override"),
        ("training.lr=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line_with_the_mend(minimal, override, expected):
    if expected is None:
        load_config(minimal, [override])
        return
    with pytest.raises(UserError) as error:
        load_config(minimal, [override])
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["627561857249", "12e45678", "2026-11-29", "yes", "0x1f"])
def test_words_stay_words_where_yaml_sees_more_in_them(minimal, word):
    config = load_config(minimal, [f"name={word}", f"output_dir={word}"])
    assert config.name == word and str(config.output_dir) == word
    assert load_config(minimal, ["start_from=null"]).start_from is None


def test_what_is_wrong_is_said_of_who_set_it(minimal):
    of_override, of_both, of_file = ["training.lr=-1", "training.lr=1e-3"], ["attack.seeds=[]"], ["clean.epochs=0"]
    with pytest.raises(UserError, match=r"^training\.lr=-1: training\.lr: "):
        load_config(minimal, of_override[::-1])
    with pytest.raises(UserError, match=rf"^{minimal} with attack\.seeds=\[\]: attack\.seeds is empty"):
        load_config(minimal, ["training.lr=1e-3", *of_both])
    with pytest.raises(UserError, match=rf"^{minimal}: clean\.epochs is 0"):
        load_config(minimal, of_file)


@pytest.mark.parametrize("text", ["", "- a", "name: [", "name: a"])
def test_a_wrong_file_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config(path)
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_the_resolved_configuration_loads_again(minimal, tmp_path):
    config = load_config(minimal, ["training.lr=3e-4"])
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_every_option_has_a_docstring():
    for key, kind, _, text in iterate_options():
        assert text and kind, key


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid(path):
    load_config(path)


def test_what_counts_as_bpr_mf():
    config = Config(name="x", catalog=Path("x"), model={"content": False})
    assert config.is_bpr_mf
    histories = config.model.model_copy(update={"user": "history"})
    softmax = config.clean.model_copy(update={"objective": "softmax"})
    assert not config.model_copy(update={"model": histories}).is_bpr_mf
    assert not config.model_copy(update={"clean": softmax}).is_bpr_mf
    assert not Config(name="x", catalog=Path("x")).is_bpr_mf
