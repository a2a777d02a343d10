"""Content carries signal, and the defence defends: the whole path on small catalogs and a real one."""

import json
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, on_ranks, run_uatmc
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.evaluation.promotion import find_result

REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Path:
    """The quickstart's configuration on a smaller catalog."""
    folder = tmp_path_factory.mktemp("quickstart")
    synthesize(folder / "catalog", users=1200, items=900, interactions=9600, visual_dim=64, text_dim=48, seed=1)
    values = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    values.update(catalog=str(folder / "catalog"), output_dir=str(folder))
    values["adversarial"]["epochs"] = 4
    values["attack"] = {"seeds": [1], "num_targets": 50, "epsilons": [0.1], "attacks": ["fgsm", "pgd"]}
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(values))
    return folder


def train(folder: Path, name: str, *overrides: str) -> dict[str, float]:
    on_ranks(2, "train.py", folder / "quickstart.yaml", f"name={name}", *overrides)
    run_uatmc("evaluate", folder / name)
    return json.loads((folder / name / "evaluation.json").read_text())


def test_vbpr_beats_bpr_mf_on_planted_taste_and_the_defence_defends(quickstart):
    clean = train(quickstart, "clean", "adversarial.epochs=0")
    factors = train(quickstart, "factors", "adversarial.epochs=0", "model.content=false", "model.user=row")
    assert clean["recall@20"] > 1.15 * factors["recall@20"]
    assert clean["ndcg@20"] > 1.15 * factors["ndcg@20"]

    hits = {}
    for adversary in ("none", "uat", "uat_mc"):
        start_from = f"start_from={quickstart / 'clean'}"
        accuracy = train(quickstart, adversary, start_from, f"adversarial.adversary={adversary}")
        run_uatmc("attack", quickstart / adversary)
        report = json.loads((quickstart / adversary / "attack.json").read_text())
        hits[adversary] = find_result(report["results"], "pgd", 0.1)["hit@50_after"]
        assert accuracy["recall@20"] > 0.9 * clean["recall@20"]
    assert hits["uat"] < hits["none"] and hits["uat_mc"] < hits["none"]
    table = run_uatmc("compare", *(quickstart / name for name in ("none", "uat", "uat_mc"))).stdout
    assert "uat_mc" in table


@pytest.mark.skipif(not (REAL / "hmfashion").exists(), reason=f"{REAL}/hmfashion is not there: real data not tested")
def test_real_data_are_imported_trained_and_attacked(tmp_path):
    output = run_uatmc("data", "import-mmrec", REAL / "hmfashion", tmp_path / "hm").stdout
    assert "9,925 users, 4,006 items, 53,759 train, 10,132 valid, 10,473 test" in output
    paths = (f"catalog={tmp_path / 'hm'}", f"output_dir={tmp_path}")
    short = ("model.embedding_dim=16", "training.batch_size=8192", "clean.epochs=1", "adversarial.epochs=1", *paths)
    on_ranks(2, "train.py", "configs/default.yaml", "name=run", *short)
    run_uatmc("evaluate", tmp_path / "run")
    few = ("attack.num_targets=20", "attack.epsilons=[0.1]", "attack.attacks=[fgsm, apgd]")
    run_uatmc("attack", tmp_path / "run", "attack.seeds=[1]", *few)
