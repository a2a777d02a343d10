"""Photos drawn, encoded, trained on and attacked as files, with nothing but what pip brings."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from conftest import TINY, run_uatmc, train
from uatmc_dist.config import load_config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.report.content import marked

SHORT = (
    "attack.k=10",
    "content_attack.num_targets=2",
    "content_attack.pixels=[4]",
    "content_attack.edits=[1, 2]",
    "content_attack.steps=4",
    "content_attack.formats=[png, jpeg95]",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(catalog with photos, run)"""
    folder = tmp_path_factory.mktemp("shop")
    made = run_uatmc(
        "data", "synthesize", folder / "shop", "--photos", "--users", 60, "--items", 40, "--interactions", 400
    )
    assert "photos of 40 of 40 items" in made.stdout
    assert Catalog(folder / "shop").contents("photo")[:2] == ["shop/photos/0.png", "shop/photos/1.png"]
    values = {**TINY, "catalog": str(folder / "shop"), "output_dir": str(folder / "runs"), "clean": {"epochs": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert train(folder / "tiny.yaml").returncode == 0
    return folder / "shop", folder / "runs/tiny"


def test_photos_are_attacked_and_judged_by_their_files(shop):
    _, run = shop
    first = run_uatmc("attack-content", run, *SHORT)
    report = json.loads((run / "content_attack.json").read_text())
    entries = {(r["attack"], r["size"], r["file"]): r for r in report["results"]}
    assert {(attack, size) for attack, size, _ in entries} == {
        ("pixels", 4.0), ("words", 1), ("words", 2), ("both", 4.0), ("copy_photo", None), ("copy_text", None)
    }  # fmt: skip
    assert {file for attack, _, file in entries if attack == "pixels"} == {"as computed", "png", "jpeg95", "best file"}
    for entry in entries.values():
        assert entry["hit@10_after"] <= entry["certified_hit@10_any_content"] and entry["above_certificate"] == 0
    words = [entries["words", edits, "text"]["hit@10_after"] for edits in (1, 2)]
    assert entries["words", 1, "text"]["hit@10_before"] <= words[0] <= words[1]
    pixels, both = entries["pixels", 4.0, "png"], entries["both", 4.0, "png"]
    assert both["hit@10_after"] >= max(pixels["hit@10_after"], words[0])  # one of them may be left alone
    assert pixels["hit@10_after"] > pixels["hit@10_before"] and 0 < pixels["moved"]["visual_l2"]["median"] < 2
    assert {check["check"] for check in report["checks"]} == {
        "never_above_certificate", "pixels_reach_what_any_photo_can", "the_file_is_what_was_computed"
    }  # fmt: skip
    changed = sorted(next((run / "content_attack").glob("photos-*")).iterdir())
    assert len(changed) == 2 and Image.open(changed[0]).size == (96, 96)
    stamps = {path: path.stat().st_mtime_ns for path in changed}
    again = run_uatmc("attack-content", run, *SHORT)  # all of it is there
    assert json.loads((run / "content_attack.json").read_text()) == report
    assert {path: path.stat().st_mtime_ns for path in changed} == stamps
    assert "any photo at all" in first.stdout and "any photo at all" in again.stdout


def test_the_report_shows_what_was_changed(shop, tmp_path):
    _, run = shop
    run_uatmc("attack-content", run, *SHORT)
    risen = json.loads((run / "content_attack.json").read_text())["risen"]
    assert len(risen) == 2 and risen[0]["after"] - risen[0]["before"] >= risen[1]["after"] - risen[1]["before"]
    assert all(one["median_rank_before"] >= 1 and ("text_after" in one or "photo_after" in one) for one in risen)
    run_uatmc("report", run, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    photos = sum("photo_after" in one for one in risen)
    assert page.count("data:image/jpeg;base64,") == 3 * photos > 0 and "difference, times 24" in page
    texts = [place for place, one in enumerate(risen) if "text_after" in one]
    assert "<ins>" in page.split('class="riser"')[1:][texts[0]] and "Hit@10 after changed pixels" in page
    for one in risen:
        uploaded = Path(one.get("photo_before", run / "none"))
        if uploaded.exists():
            kept = uploaded.read_bytes()
            Image.new("RGB", (50, 70)).save(uploaded)
            run_uatmc("report", run, "--out", tmp_path / "other.html")
            uploaded.write_bytes(kept)
            assert (tmp_path / "other.html").read_text().count("data:image/jpeg;base64,") == 3 * (photos - 1)
    assert marked("a red coat", "a blue wool coat") == [
        ("same", "a"), ("out", "red"), ("in", "blue"), ("in", "wool"), ("same", "coat")
    ]  # fmt: skip


def test_an_interrupted_attack_goes_on(shop):
    _, run = shop
    run_uatmc("attack-content", run, *SHORT)
    whole = (run / "content_attack.json").read_text()
    (records,) = (run / "content_attack").glob("records-*.jsonl")
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:2]) + lines[2][:20])  # a kill in the middle of a line
    run_uatmc("attack-content", run, *SHORT)
    assert json.loads((run / "content_attack.json").read_text()) == json.loads(whole)


def test_what_cannot_be_attacked_is_told_in_one_line(shop, write_config, tmp_path):
    catalog, run = shop
    assert train(write_config()).returncode == 0
    refused = run_uatmc("attack-content", tmp_path / "runs/tiny", check=False)
    assert refused.returncode == 2 and "build the catalog from photos" in refused.stderr
    for option, said in (
        ("content_attack.pixels=[4, 1]", "give the smaller ones first"),
        ("content_attack.attacks=[pixel]", "content_attack.attacks"),
        ("content_attack.steps=0", "content_attack.steps"),
        ("content_attack.pixels=[1e300]", "less than or equal to 255"),
        ("content_attack.attacks=[both]", "made of pixels and words"),
        ("content_attack.attacks=[transfer]", "transfer needs content_attack.surrogate=RUN"),
    ):
        refused = run_uatmc("attack-content", run, option, check=False)
        assert refused.returncode == 2 and said in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    photos = catalog / "shop/photos"
    elsewhere = photos.rename(catalog / "shop/elsewhere")
    others = "attack-content", run, *SHORT, "content_attack.attacks=[pixels]", "content_attack.seeds=[2]"
    try:
        gone = run_uatmc(*others, check=False)
        photos.mkdir()
        for photo in elsewhere.iterdir():
            Image.open(photo).rotate(180).save(photos / photo.name)
        changed = run_uatmc(*others, check=False)
    finally:
        shutil.rmtree(photos, ignore_errors=True)
        elsewhere.rename(photos)
    for refused, said in ((gone, "no such file"), (changed, "not the photo that the catalog was built from")):
        assert refused.returncode == 2 and said in refused.stderr and len(refused.stderr.strip().splitlines()) == 1


def test_calibration_is_what_the_next_training_reads(shop, tmp_path):
    catalog, run = shop
    options = [option for option in SHORT if "pixels" not in option]
    shown = run_uatmc("calibrate", run, *options, "content_attack.pixels=[1, 4]")
    report = json.loads((run / "calibration.json").read_text())
    assert [(entry["attack"], entry["size"]) for entry in report["sizes"]] == [
        ("pixels", 1.0), ("pixels", 4.0), ("words", 1), ("words", 2)
    ]  # fmt: skip
    for entry in report["sizes"]:
        assert 0 <= entry["moved"]["l2"]["10%"] <= entry["moved"]["l2"]["90%"] <= entry["epsilon"]["l2"] <= 2.001
    recommended = report["recommended"]["options"]
    assert f"adversarial.budget={recommended['budget']}" in shown.stdout
    assert "never above certificate" in shown.stdout and len(report["checks"]) == 3
    values = {**TINY, "name": "robust", "catalog": str(catalog), "output_dir": str(tmp_path), "start_from": str(run)}
    (tmp_path / "robust.yaml").write_text(yaml.safe_dump(values))
    train_options = tmp_path / "robust.yaml", "adversarial.epochs=1", "adversarial.epsilon=calibrated"
    done = train(*train_options)
    assert done.returncode == 0, done.stderr
    trained = yaml.safe_load((tmp_path / "robust/config.yaml").read_text())["adversarial"]
    assert {name: trained[name] for name in recommended} == recommended
    typed = ["adversarial.epochs=1", "adversarial.epsilon=calibrated", "adversarial.adversary=noise"]
    calibrated = load_config(tmp_path / "robust.yaml", typed).adversarial
    assert (calibrated.adversary, calibrated.epsilon) == ("noise", recommended["epsilon"])
    for damaged in ("[]", "3", '{"recommended": 3}', '{"recommended": {}}'):
        (run / "calibration.json").write_text(damaged)
        with pytest.raises(UserError, match="missing or damaged"):
            load_config(tmp_path / "robust.yaml", typed)
    (run / "calibration.json").unlink()
    refused = train(*train_options, "name=other")
    assert refused.returncode == 2 and "run `uatmc calibrate" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_change_found_on_another_model_is_replayed_on_this_one(shop, tmp_path):
    _, run = shop
    values = yaml.safe_load((run.parents[1] / "tiny.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**values, "name": "other", "seed": 1}))
    assert train(tmp_path / "other.yaml").returncode == 0
    other = run.parent / "other"
    run_uatmc(
        "attack-content", run, *SHORT, "content_attack.attacks=[pixels,transfer]", f"content_attack.surrogate={other}"
    )
    report = json.loads((run / "content_attack.json").read_text())
    entries = {r["attack"]: r for r in report["results"] if r["file"] == "png"}
    known, unknown = entries["pixels"], entries["transfer"]
    assert known["hit@10_before"] == unknown["hit@10_before"]
    assert unknown["hit@10_after"] <= unknown["certified_hit@10_any_content"]
    assert known["moved"] != unknown["moved"]


def test_a_graph_is_attacked_with_everybody_in_reach_moving_along(shop, tmp_path):
    _, vbpr = shop
    values = yaml.safe_load((vbpr.parents[1] / "tiny.yaml").read_text())
    values |= {"name": "graph", "model": {**values.get("model", {}), "backbone": "mmgcn"}}
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(values))
    assert train(tmp_path / "graph.yaml", "adversarial.epochs=0").returncode == 0
    run = vbpr.parent / "graph"
    attacks = ["content_attack.attacks=[pixels,insa,transfer,words,both]", f"content_attack.surrogate={vbpr}"]
    shown = run_uatmc("attack-content", run, *SHORT, *attacks)
    assert "insa: left out, needs linear fusion" in shown.stdout
    report = json.loads((run / "content_attack.json").read_text())
    entries = {r["attack"]: r for r in report["results"] if r["file"] == "best file"}
    assert set(entries) == {"pixels", "transfer", "words", "both"}
    for entry in entries.values():
        assert entry["certified_hit@10_any_content"] is None and entry["above_certificate"] is None
        assert min(entry["hit@10_after"], entry["hit@10_any_content"]) >= entry["hit@10_before"] - 1e-9
        assert min(entry["moved"][name]["median"] for name in entry["moved"]) > 0
    assert report["checks"][0]["passed"] is None and len(report["risen"]) == 2
    page = tmp_path / "report.html"
    run_uatmc("report", run, vbpr, "--out", page)
    assert "any content" in page.read_text()
    refused = run_uatmc("attack-content", run, *SHORT, "content_attack.attacks=[insa]", check=False)
    assert refused.returncode == 2 and "insa: left out, needs linear fusion; give others" in refused.stderr
