"""Every backbone through the commands that follow training."""

import json

import pytest
from safetensors.torch import load_file

from conftest import ROOT, on_ranks, run_uatmc

ATTACK = ["attack.num_targets=4", "attack.seeds=[1]", "attack.epsilons=[0.1, 0.5]", "attack.k=10"]
SHORT = ["attack.pgd_steps=3", "attack.apgd_steps=4", "attack.restarts=2", "attack.queries=5"]


def trained(write_config, tmp_path, backbone):
    config = write_config(model={"backbone": backbone}, adversarial={"epochs": 1, "adversary": "uat_mc"})
    on_ranks(2, ROOT / "train.py", config)
    return tmp_path / "runs/tiny"


def test_users_of_each_modality_are_attacked_and_certified(write_config, tmp_path):
    run = trained(write_config, tmp_path, "vbpr_own_users")
    assert load_file(run / "model/model.safetensors")["user"].shape[1] == 3 * 8
    run_uatmc("evaluate", run)
    run_uatmc("attack", run, *ATTACK, *SHORT)
    report = json.loads((run / "attack.json").read_text())
    assert sum(result["above_certificate"] for result in report["results"]) == 0
    for verb in ("certify", "mismatch", "export", "report"):
        run_uatmc(verb, run)
    bound = json.loads((run / "certificate.json").read_text())["results"]
    assert all(0 <= entry["certified_hit@50"] <= 1 for entry in bound)


def test_mmgcn_is_attacked_in_both_ways_and_has_no_certificate(write_config, tmp_path):
    run = trained(write_config, tmp_path, "mmgcn")
    tensors = load_file(run / "model/model.safetensors")
    assert tensors["preference_visual"].shape[1] == 4 * 8 and tensors["preference_text"].shape[1] == 8
    run_uatmc("evaluate", run)
    run_uatmc("attack", run, *ATTACK, *SHORT)
    report = json.loads((run / "attack.json").read_text())
    assert {result["attack"] for result in report["any_content"]} == {result["attack"] for result in report["results"]}
    names = {result["attack"] for result in report["results"]}
    both = {"fgsm", "pgd", "apgd", "visual_only", "text_only", "strongest"}
    assert names == both | {f"{name}_held" for name in both}
    assert all(result["certified_hit@10"] is None for result in report["results"])
    assert "move along" in report["threat_model"]["others"]
    for result in report["results"]:
        assert result["hit@10_after"] >= 0 and result["mean_rank_after"] >= 1
    run_uatmc("export", run)
    run_uatmc("report", run)
    run_uatmc("mismatch", run)
    assert json.loads((run / "mismatch.json").read_text())["after"]["single_matrix_residual"] > 0.1
    refused = run_uatmc("certify", run, check=False)
    assert refused.returncode == 2 and "no certificate" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "sections, said",
    [
        ({"model": {"backbone": "mmgcn", "user": "history"}}, "model.user=row"),
        ({"model": {"backbone": "mmgcn"}, "adversarial": {"epochs": 1, "adversary": "certified"}}, "linear fusion"),
        ({"model": {"backbone": "mmgcn"}, "engine": {"precision": "bf16", "zero_stage": 1}}, "precision=fp32"),
        ({"model": {"backbone": "mmgnc"}}, "model.backbone"),
        ({"adversarial": {"epochs": 1, "adversary": "user_coordination"}}, "adversarial.steps=2"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(write_config, sections, said):
    from conftest import train

    refused = train(write_config(**sections))
    assert refused.returncode == 2 and said in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
