"""benchmarks/published.py: the deviations of the public code do what they say."""

import json

import torch
from safetensors.torch import load_file

from benchmarks.published import redraw_preferences
from conftest import ROOT, environment, train
from tests import nursery
from uatmc_dist.config import dump_config, load_config


def test_inner_gradients_are_those_of_the_loss_and_swapped_rows_change_it(write_config, tmp_path):
    clean = write_config(name="clean", clean={"epochs": 1, "objective": "sampled"}, logging={"every_steps": 1})
    assert train(clean).returncode == 0
    config = load_config(clean)
    changes = {"objective": "sampled", "epochs": 1, "adversary": "uat", "adv_align_weight": 0.0}
    first = {}
    for name in ("inner", "swapped,inner"):
        values = {
            "name": name.replace(",", "-"),
            "start_from": config.run_dir,
            "adversarial": config.adversarial.model_copy(update=changes),
        }
        path = tmp_path / f"{values['name']}.yaml"
        path.write_text(dump_config(config.model_copy(update=values)))
        command = ["benchmarks/published.py", "--train", name, str(path)]
        done = nursery.run(1, command, ROOT, environment(), timeout=300)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / f"runs/{values['name']}/metrics.jsonl").read_text().splitlines()
        first[name] = json.loads(lines[0])
        assert abs(first[name]["inner"] - first[name]["bpr"]) < 1e-6
    assert abs(first["inner"]["bpr"] - first["swapped,inner"]["bpr"]) > 1e-4


def test_redrawn_preferences_are_the_only_change(write_config, tmp_path):
    config = write_config(model={"backbone": "mmgcn", "preference": "frozen"}, clean={"epochs": 1})
    assert train(config).returncode == 0
    redraw_preferences(tmp_path / "runs/tiny", tmp_path / "redrawn")
    folders = tmp_path / "runs/tiny", tmp_path / "redrawn"
    before, after = (load_file(folder / "model/model.safetensors") for folder in folders)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"preference_visual", "preference_text"}
