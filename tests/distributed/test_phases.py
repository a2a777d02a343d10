"""What a run leaves behind, phases in one run or two, and evaluation on several ranks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import on_ranks, run_uatmc
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.trained import TrainedModel


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_catalog):
    """One run of both phases on two ranks, evaluated and attacked."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "both.yaml"
    config.write_text(
        f"name: both\ncatalog: {tiny_catalog}\noutput_dir: {folder}\n"
        "model: {embedding_dim: 8, visual_hidden: [16, 12], text_hidden: [12]}\n"
        "training: {batch_size: 128, lr: 0.01}\ntables: {lr: 0.1}\n"
        "clean: {epochs: 6, objective: full_catalog, patience: 2}\n"
        "adversarial: {epochs: 2}\nattack: {num_targets: 10, seeds: [1, 2], k: 20}\nevaluation: {attack_epsilon: 0.3}\n"
    )
    on_ranks(2, "train.py", config)
    run = folder / "both"
    for command in ("evaluate", "attack"):
        run_uatmc(command, run)
    return run


def test_a_run_keeps_the_contract(finished):
    names = {path.name for path in finished.iterdir()}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints", "model"}
    assert names == files | {"evaluation.json", "attack.json"}
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["world_size"] == 2 and environment["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    expected = {"step", "epoch", "phase", "loss", "bpr", "lr", "pairs_per_s", "step_s", "peak_memory_bytes"}
    assert all(expected <= line.keys() for line in steps)
    assert {line["phase"] for line in lines} == {"clean", "adversarial"}
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["split"] == "test" and 0 < evaluation["recall@20"] <= evaluation["recall@50"] <= 1
    assert list((finished / "tensorboard").glob("events*"))
    pointer = (finished / "checkpoints/latest").read_text()
    assert (finished / "checkpoints" / pointer / "position.json").exists()


def test_tensorboard_has_curves_of_robustness_and_the_options(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    curves = [{name: line[name] for name in line if "hit@20" in name} for line in lines if "valid/recall@20" in line]
    for curve in curves:
        assert (
            0 < curve["attack/hit@20_before"] <= curve["attack/hit@20_after"] <= curve["attack/certified_hit@20"] <= 1
        )
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert len(events.Scalars("clean/attack/hit@20_after")) + len(
        events.Scalars("adversarial/attack/hit@20_after")
    ) == len(curves)
    best = max(
        line["valid/recall@20"] for line in lines if line["phase"] == "adversarial" and "valid/recall@20" in line
    )
    assert events.Scalars("best/valid/recall@20")[0].value == pytest.approx(best)
    parts = events.summary_metadata
    assert "_hparams_/session_start_info" in parts and b"adversarial.epochs" in str(parts).encode()


def test_an_attack_while_training_leaves_no_trace(write_config, tmp_path):
    models = []
    for epsilon in (None, 0.3):
        config = write_config(name=f"at {epsilon}", evaluation={"attack_epsilon": epsilon}, adversarial={"epochs": 1})
        on_ranks(1, "train.py", config)
        models.append(load_file(tmp_path / f"runs/at {epsilon}/model/model.safetensors"))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_model_loads_on_one_cpu_without_torchrun(finished, tiny_catalog):
    catalog = Catalog(tiny_catalog)
    model = TrainedModel.load(finished, catalog)
    assert model.users_UK.shape == (catalog.num_users, 16) and model.items().shape == (catalog.num_items, 16)
    torch.testing.assert_close(model.v_Nd.norm(dim=1), torch.ones(catalog.num_items))


def test_evaluation_is_equal_on_any_number_of_ranks(finished, tiny_catalog, tmp_path):
    one = json.loads((finished / "evaluation.json").read_text())
    for ranks in (2, 4):
        out = tmp_path / f"{ranks}"
        on_ranks(ranks, Path(__file__).parent / "ranking.py", finished, tiny_catalog, out)
        for rank in range(ranks):
            ranked = json.loads(Path(f"{out}.{rank}").read_text())
            assert {name: one[name] for name in ranked} == ranked


def test_the_adversarial_phase_from_a_clean_run_freezes_the_projectors(write_config, tmp_path):
    on_ranks(1, "train.py", write_config(name="clean", clean={"epochs": 2}))
    config = write_config(name="defended", start_from=str(tmp_path / "runs/clean"), adversarial={"epochs": 1})
    on_ranks(1, "train.py", config)
    clean, defended = (load_file(tmp_path / f"runs/{name}/model/model.safetensors") for name in ("clean", "defended"))
    assert clean.keys() == defended.keys()
    for name, weight in clean.items():
        is_frozen = name.startswith(("dense.visual", "dense.text", "dense.log_temperature"))
        assert torch.equal(weight, defended[name]) == is_frozen, name
    metrics = (tmp_path / "runs/defended/metrics.jsonl").read_text()
    assert '"phase": "clean"' not in metrics


def test_raw_features_are_read_for_touched_rows_only_and_not_at_all_when_frozen(write_config, tmp_path):
    script = tmp_path / "watch.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from uatmc_dist.config import load_config\n"
        "from uatmc_dist.data.catalog import FeatureFile\n"
        "from uatmc_dist.parallel import process_group\n"
        "from uatmc_dist.training import Trainer\n"
        "read = []\n"
        "original = FeatureFile.rows\n"
        "FeatureFile.rows = lambda self, ids: read.append(set(ids.tolist())) or original(self, ids)\n"
        "class Watched(Trainer):\n"
        "    def train_step(self, batch):\n"
        "        read.clear()\n"
        "        terms = super().train_step(batch)\n"
        "        if self.step.adversary is None:\n"
        "            touched = set(batch.positives_B.tolist()) | set(batch.negatives_B.tolist())\n"
        "        assert read == ([touched] * 2 if self.step.adversary is None else []), (len(read), self.position)\n"
        "        return terms\n"
        "Watched(load_config(Path(sys.argv[1])), process_group.join()).fit()\n"
    )
    config = write_config(adversarial={"epochs": 1})
    on_ranks(1, script, config)


def test_learning_rates_follow_the_schedule(write_config, tmp_path):
    on_ranks(1, "train.py", write_config(training={"lr_schedule": "linear", "warmup_steps": 4}))
    lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines if "lr" in json.loads(line)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] < 0.0025
