"""benchmarks/defences.py: the plans that are committed, and the defence that costs no training."""

from pathlib import Path

import pytest
import torch

from benchmarks.defences import Plan, shrink
from conftest import ROOT
from uatmc_dist.config import load_config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.files import write_safetensors
from uatmc_dist.models.linear_model import USER_TABLES
from uatmc_dist.models.trained import TrainedModel


@pytest.mark.parametrize("path", sorted((ROOT / "configs/defences").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_of_a_plan_is_a_configuration(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for plan in Plan.read(path):
        for variant, overrides in {**plan.clean, **plan.defences}.items():
            load_config(Path(plan.config), [*plan.overrides, f"name={variant}", *overrides])
        assert "clean" in plan.clean
        assert load_config(Path(plan.config), plan.attack)


def test_a_plan_takes_from_its_base_what_it_does_not_say(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "config: configs/default.yaml\ncatalogs: {one: data/one, two: data/two}\nruns: '{catalog}'\nseeds: [0, 1]\n"
        "clean: {clean: []}\ndefences: {uat: [adversarial.adversary=uat], certified: []}\n"
        "fewer_seeds: {one: {uat: [0]}}\n"
    )
    (tmp_path / "own.yaml").write_text(
        "base: base.yaml\nruns: '{catalog}-own'\nwithout: [certified]\ndefences: {none: []}\n"
    )
    one, two = Plan.read(tmp_path / "own.yaml")
    assert (one.name, two.name) == ("own-one", "own-two")
    assert one.run("uat", 0).name == "one-own-uat-s0"
    assert (one.overrides, list(one.defences)) == (["catalog=data/one"], ["uat", "none"])
    assert (one.seeds_of("uat"), one.seeds_of("clean")) == ([0], [0, 1]) and two.seeds_of("uat") == [0, 1]


@pytest.mark.parametrize("user", ["row", "history"])
def test_a_shrunk_model_weighs_content_by_its_share(user, write_config, tiny_catalog, tmp_path):
    catalog, config = Catalog(tiny_catalog), load_config(write_config(model={"user": user}))
    clean = TrainedModel.initial(config, catalog)
    users_table = {"row": clean.users_UK, "history": clean.history_NK}[user]
    tables = dict(zip(USER_TABLES[user] + ["item"], (users_table, clean.identity_Nd), strict=True))
    (tmp_path / "clean/model").mkdir(parents=True)
    (tmp_path / "clean/model/config.yaml").write_text(write_config(model={"user": user}).read_text())
    dense = {f"dense.{name}": weight for name, weight in clean.dense.state_dict().items()}
    write_safetensors(tmp_path / "clean/model/model.safetensors", {**tables, **dense})

    shrink(tmp_path / "clean", tmp_path / "shrunk", 0.25)

    shrunk, dim = TrainedModel.load(tmp_path / "shrunk", catalog), config.model.embedding_dim
    scores = [model.users_UK[:, part] @ model.items()[:, part].T for model in (clean, shrunk) for part in _halves(dim)]
    torch.testing.assert_close(scores[2], scores[0])
    torch.testing.assert_close(scores[3], 0.25 * scores[1])


def _halves(dim: int) -> tuple[slice, slice]:
    return slice(0, dim), slice(dim, None)
