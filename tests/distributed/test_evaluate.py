"""`uatmc evaluate`, `attack`, `certify`, `mismatch`, `export` under torchrun: as in one process, from row blocks."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, USERS, environment, on_ranks, run_uatmc, train
from tests import nursery

MODELS = {
    "rows": {},
    "history": {"user": "history"},
    "own users": {"backbone": "vbpr_own_users"},
    "mmgcn": {"backbone": "mmgcn", "visual_hidden": [], "text_hidden": []},
    "without content": {"content": False},
}


@pytest.mark.parametrize("model", MODELS)
def test_ranks_tell_what_one_process_tells(model, write_config, tmp_path):
    sections = {"adversarial": {"epochs": 0}} if model in ("without content", "mmgcn") else {}
    clean = {"align_weight": 0} if model in ("without content", "mmgcn") else {}
    assert train(write_config(model=MODELS[model], clean=clean, **sections)).returncode == 0
    run, found = tmp_path / "runs/tiny", {}
    counts = (1, 2, 4) if model == "history" else (1, 2)
    one_alone = f"evaluation.users_per_batch={USERS - 1}"  # in the last batch
    for ranks in counts:
        lists = tmp_path / f"{ranks}.parquet"
        if ranks == 1:
            run_uatmc("evaluate", run, one_alone, "--lists", lists)
        else:
            told = on_ranks(ranks, "tests/uatmc.py", "evaluate", run, one_alone, "--lists", lists)
            assert told.count("written: ") == 2
        found[ranks] = json.loads((run / "evaluation.json").read_text()), pq.read_table(lists)
    for ranks in counts[1:]:
        figures = [{k: v for k, v in one[0].items() if isinstance(v, float)} for one in (found[ranks], found[1])]
        assert len(figures[0]) > 16 and figures[0] == pytest.approx(figures[1], abs=1e-6)
        same = found[ranks][1]["items"].to_pylist(), found[1][1]["items"].to_pylist()
        assert sum(one == other for one, other in zip(*same, strict=True)) >= 0.98 * len(same[0])


@pytest.mark.parametrize("verb, file", [("evaluate", "evaluation"), ("attack", "attack")])
def test_a_gpu_is_used_without_torchrun(verb, file, write_config, tmp_path):
    few = {"seeds": [1], "attacks": ["fgsm"], "num_targets": 4, "k": 10, "epsilons": [0.1], "any_content": False}
    assert train(write_config(attack=few, adversarial={"epochs": 0})).returncode == 0
    run, found = tmp_path / "runs/tiny", []
    for script in ("tests/uatmc.py", "tests/distributed/alone_in_blocks.py"):
        assert on_ranks(1, script, verb, run).count("written: ") == 1
        figures = _numbers(json.loads((run / f"{file}.json").read_text()))
        found.append({name: value for name, value in figures.items() if not name.endswith("seconds")})
    assert found[1] == pytest.approx(found[0], rel=2e-3, abs=2e-6) and len(found[0]) > 15
    (line,) = (run / "traffic.jsonl").read_text().splitlines()
    assert json.loads(line)["ranks"] == 1


def test_what_is_wrong_is_told_once(write_config, tmp_path):
    done = nursery.run(2, ["tests/uatmc.py", "evaluate", str(tmp_path / "nothing")], ROOT, environment(2), timeout=120)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1


@pytest.mark.parametrize("model, counts", [("history", (1, 2, 4)), ("own users", (1, 2))])
def test_ranks_certify_what_one_process_certifies(model, counts, write_config, tmp_path):
    assert train(write_config(model=MODELS[model], attack={"k": 10, "epsilons": [0.05, 0.3]})).returncode == 0
    run, found = tmp_path / "runs/tiny", {}
    for ranks in counts:
        if ranks == 1:
            run_uatmc("certify", run)
        else:
            on_ranks(ranks, "tests/uatmc.py", "certify", run)
        report = json.loads((run / "certificate.json").read_text())
        found[ranks] = [entry["certified_hit@10"] for entry in [*report["results"], *report["any_content"]]]
        assert len(found[ranks]) == 4 * 2 + 3 and pq.read_table(run / "certificate.parquet").num_rows == 203
    assert all(found[ranks] == pytest.approx(found[1], abs=1e-6) for ranks in counts)
    lines = [json.loads(line) for line in (run / "traffic.jsonl").read_text().splitlines()]
    assert [(line["verb"], line["ranks"]) for line in lines] == [("certify", ranks) for ranks in counts[1:]]
    # Users and the lists that make the bars; a rank that has all of it receives nothing.
    assert all(line["all_gathered_bytes"] > 0 and line["peak_memory_bytes"] > 1 << 20 for line in lines)
    assert not list(run.glob("certificate-*"))


@pytest.mark.parametrize("model, counts", [("history", (1, 2, 4)), ("own users", (1, 2)), ("mmgcn", (1, 2))])
def test_ranks_attack_as_one_process_does(model, counts, write_config, tmp_path):
    few = {"seeds": [1], "apgd_steps": 6, "restarts": 2, "queries": 20, "num_targets": 9, "anchor_share": 1.0}
    is_linear, surrogate = model != "mmgcn", [f"attack.surrogate={tmp_path / 'runs/tiny'}"]
    sections = {} if is_linear else {"clean": {"align_weight": 0}, "adversarial": {"epochs": 0}}
    if not is_linear:
        cheap = {"attacks": ["fgsm", "pgd", "apgd"], "num_targets": 3, "apgd_steps": 3, "restarts": 1}
        few, surrogate = few | cheap, []
    config = write_config(model=MODELS[model], attack={"k": 10, "epsilons": [0.3], **few}, **sections)
    assert train(config).returncode == 0
    run, found = tmp_path / "runs/tiny", {}
    for ranks in counts:
        told = on_ranks(ranks, "tests/distributed/small_pieces.py", "attack", run, *surrogate)
        assert told.count("written: ") == 1
        found[ranks] = json.loads((run / "attack.json").read_text())
    whole = found[1]
    assert len(whole["results"]) == 3 * (12 if is_linear else 8)
    assert whole["threat_model"]["knowledge"].endswith(f"transfer: {run} alone") == is_linear
    for ranks in counts[1:]:
        ours = found[ranks]
        assert ours["threat_model"] == whole["threat_model"]
        assert [one["passed"] for one in ours["checks"]] == [one["passed"] for one in whole["checks"]]
        for results in ("results", "any_content"):
            for one, other in zip(ours[results], whole[results], strict=True):
                figures = [{k: v for k, v in of.items() if isinstance(v, float) and "hit@" in k} for of in (one, other)]
                assert len(figures[0]) == (9 if is_linear else 8)
                assert figures[0] == pytest.approx(figures[1], abs=1e-6), one["attack"]


@pytest.mark.parametrize("model, counts", [("history", (1, 2, 4)), ("own users", (1, 2)), ("mmgcn", (1, 2))])
def test_ranks_see_the_mismatch_that_one_process_sees(model, counts, write_config, tmp_path):
    clean = {"align_weight": 0} if model == "mmgcn" else {}
    config = write_config(model=MODELS[model], clean=clean, adversarial={"epochs": 0})
    assert train(config).returncode == 0
    run, found = tmp_path / "runs/tiny", {}
    for ranks in counts:
        told = on_ranks(ranks, "tests/uatmc.py", "mismatch", run)
        assert told.count("written: ") == 1
        found[ranks] = _numbers(json.loads((run / "mismatch.json").read_text()))
    assert len(found[1]) > 150
    for ranks in counts[1:]:
        assert found[ranks].keys() == found[1].keys()
        for name, value in found[1].items():
            # What lies at the edge of a bin, or of the ten largest, may fall on either side.
            loose = "histogram.counts" in name or "overlap" in name
            assert found[ranks][name] == pytest.approx(value, rel=2e-3, abs=2 if loose else 2e-6), name


@pytest.mark.parametrize("model, counts", [("history", (1, 2, 4)), ("without content", (1, 2)), ("mmgcn", (1, 2))])
def test_ranks_export_what_one_process_exports(model, counts, write_config, tmp_path):
    clean = {} if model == "history" else {"align_weight": 0}
    config = write_config(model=MODELS[model], clean=clean, adversarial={"epochs": 0})
    assert train(config).returncode == 0
    run, found = tmp_path / "runs/tiny", {}
    for ranks in counts:
        out = tmp_path / f"of {ranks}"
        told = on_ranks(ranks, "tests/distributed/small_pieces.py", "export", run, "--out", out, "--projector")
        assert told.count("written: ") == 4
        vectors = (run / "tensorboard").rglob("tensors.tsv")
        found[ranks] = load_file(out / "embeddings.safetensors"), pq.read_table(out / "items.parquet"), next(vectors)
        assert (out / "MODEL_CARD.md").read_text() == (tmp_path / "of 1/MODEL_CARD.md").read_text()
        assert len(found[ranks][2].read_text().splitlines()) == 203
    for ranks in counts[1:]:
        tensors, table, _ = found[ranks]
        assert tensors.keys() == found[1][0].keys() and ("history" in tensors) == (model == "history")
        for name, whole in found[1][0].items():
            torch.testing.assert_close(tensors[name], whole, rtol=1e-6, atol=1e-7)
        assert table["source_id"] == found[1][1]["source_id"] and len(table) == 203
        assert table["vector"].to_pylist() == tensors["item"].tolist()


def test_an_export_that_cannot_be_written_is_told_once(write_config, tmp_path):
    config = write_config(adversarial={"epochs": 0})
    assert train(config).returncode == 0
    command = ["tests/uatmc.py", "export", str(tmp_path / "runs/tiny"), "--out", str(config / "x")]
    done = nursery.run(2, command, ROOT, environment(2), timeout=120)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "give another --out" in done.stderr


def _numbers(report, name: str = "") -> dict[str, float]:
    """All numbers of a JSON report by their place in it."""
    if isinstance(report, dict | list):
        entries = report.items() if isinstance(report, dict) else enumerate(report)
        return {key: number for at, part in entries for key, number in _numbers(part, f"{name}.{at}").items()}
    return {name: report} if isinstance(report, int | float) else {}


def test_what_has_no_certificate_is_told_under_torchrun_too(write_config, tmp_path):
    config = write_config(model=MODELS["mmgcn"], clean={"align_weight": 0}, adversarial={"epochs": 0})
    assert train(config).returncode == 0
    command = ["tests/uatmc.py", "certify", str(tmp_path / "runs/tiny")]
    done = nursery.run(2, command, ROOT, environment(2), timeout=120)
    assert done.returncode == 2 and done.stderr.count("no certificate for this model") == 1
