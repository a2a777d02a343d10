"""A catalog with photos alone, or texts alone: trained on two ranks, then all that is made of a run."""

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.conftest import ROOT, on_ranks, run_uatmc, train
from uatmc_dist.config import load_config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.trained import TrainedModel

SHORT = ("clean.epochs=1", "clean.align_weight=0", "adversarial.epochs=1")


@pytest.fixture(scope="module", params=["visual", "text"])
def catalog(request, tmp_path_factory, tiny_catalog):
    """The tiny catalog with that modality alone."""
    path = shutil.copytree(tiny_catalog, tmp_path_factory.mktemp("one") / "shop")
    meta = json.loads((path / "catalog.json").read_text())
    other = {"visual": "text", "text": "visual"}[request.param]
    file = meta["modalities"].pop(other)["file"]
    (path / file).unlink()
    for kept in ("bytes", "checksums"):
        del meta[kept][file]
    (path / "catalog.json").write_text(json.dumps(meta))
    return Catalog(path)


@pytest.fixture(scope="module")
def configuration(catalog, tiny_values):
    values = {**tiny_values, "catalog": str(catalog.path), "output_dir": str(catalog.path.parent)}
    file = catalog.path.parent / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_it_goes_through_everything(catalog, configuration):
    folder = catalog.path.parent
    on_ranks(2, "train.py", configuration, "name=uat", "adversarial.adversary=uat", *SHORT)
    run = folder / "uat"
    assert (run / "model/model.safetensors").exists()
    model = TrainedModel.load(run, catalog)
    assert model.dense.modalities == catalog.modalities
    absent = model.t_Nd if catalog.modalities == ["visual"] else model.v_Nd
    assert not absent.any()

    evaluated = run_uatmc("evaluate", run).stdout
    assert ("photo kNN" in evaluated) == (catalog.modalities == ["visual"]) and "photo and text" not in evaluated
    attacked = run_uatmc("attack", run, "attack.seeds=[1]", "attack.num_targets=10").stdout
    assert "coordinated, anti_aligned, visual_only, text_only: left out" in attacked
    assert "never above certificate (targets above: 0)" in attacked
    report = json.loads((run / "attack.json").read_text())
    assert report["threat_model"]["perturbed"].endswith(
        "visual row" if catalog.modalities == ["visual"] else "textual row"
    )
    run_uatmc("certify", run)
    refused = run_uatmc("mismatch", run, check=False)
    assert refused.returncode == 2 and "nothing to compare" in refused.stderr and refused.stderr.count("\n") == 1
    run_uatmc("export", run)
    exported = load_file(run / "export/embeddings.safetensors")
    (weight,) = (name for name in exported if name.startswith("fusion.w_"))
    assert weight == ("fusion.w_v" if catalog.modalities == ["visual"] else "fusion.w_t")
    np.testing.assert_allclose(exported["item"], model.items().numpy(), atol=1e-6)
    run_uatmc("report", run)
    assert (run / "report/index.html").stat().st_size > 10_000


@pytest.mark.parametrize("adversary", ["noise", "certified"])
def test_other_defences_train(configuration, adversary):
    done = train(configuration, f"name={adversary}", f"adversarial.adversary={adversary}", *SHORT)
    assert done.returncode == 0, done.stderr


def test_bf16_is_attacked_in_float32(catalog, configuration):
    options = ["engine.precision=bf16", "engine.zero_stage=1", "evaluation.attack_epsilon=0.1", "attack.k=10"]
    done = train(configuration, "name=bf16", "adversarial.adversary=uat", *options, *SHORT)
    assert done.returncode == 0, done.stderr
    few = ["attack.seeds=[1]", "attack.num_targets=5", "attack.epsilons=[0.1]"]
    on_ranks(2, "tests/uatmc.py", "attack", catalog.path.parent / "bf16", *few)


def test_mmgcn_is_defended_and_attacked(catalog, configuration):
    options = ["model.backbone=mmgcn", "adversarial.adversary=uat", "training.lr=1e-3", "tables.lr=0.01"]
    done = train(configuration, "name=mmgcn", *options, *SHORT)
    assert done.returncode == 0, done.stderr
    few = ["attack.seeds=[1]", "attack.num_targets=3", "attack.attacks=[fgsm]", "attack.epsilons=[0.1]", "attack.k=10"]
    run_uatmc("attack", catalog.path.parent / "mmgcn", *few)


def test_what_needs_two_is_refused_in_one_line(catalog, configuration):
    absent = {"visual": "text", "text": "visual"}[catalog.modalities[0]]
    for option, expected in (
        ("adversarial.adversary=uat_mc", "uat_mc needs two modalities"),
        (f"adversarial.adversary={absent}_only", f"{absent}_only needs {absent} features"),
        ("clean.align_weight=1", "InfoNCE needs two modalities"),
    ):
        done = train(configuration, "name=refused", "adversarial.adversary=uat", *SHORT, option)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and expected in done.stderr, done.stderr


def test_a_model_of_two_modalities_is_not_shown_a_catalog_of_one(catalog, configuration, tiny_values, tiny_catalog):
    folder = catalog.path.parent
    whole = f"catalog={tiny_catalog}"
    done = train(configuration, "name=both", whole, "adversarial.epochs=0", "clean.epochs=1")
    assert done.returncode == 0, done.stderr
    refused = run_uatmc("evaluate", folder / "both", f"catalog={catalog.path}", check=False)
    assert refused.returncode == 2 and "trained with visual and text" in refused.stderr
    assert load_config(ROOT / "configs/default.yaml").clean.align_weight == 0
