"""Ranks are processes of their own, in which a set of names may have another order: what is handed from rank to rank
does not depend on it. The other tests fork their ranks from one process."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from conftest import ROOT, environment, train
from tests.nursery import free_port

_SEEDS = "0", "4"
"""Sets of the modalities' names, and of their weights', have another order under each."""


def test_ranks_with_hash_seeds_of_their_own_train_as_one_does(write_config, tmp_path):
    changes = {"clean": {"epochs": 1}, "adversarial": {"epochs": 1, "whitening": 0.5}}
    ours, one = (write_config(name=name, **changes) for name in ("ours", "one"))
    assert train(one).returncode == 0
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = []
    for rank, seed in enumerate(_SEEDS):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "PYTHONHASHSEED": seed}
        variables = {**environment(2), **meeting, **place}
        ranks.append(subprocess.Popen([sys.executable, "train.py", ours], cwd=ROOT, env=variables))
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    folders = [tmp_path / "runs" / name for name in ("ours", "one")]
    losses = [
        [line["loss"] for line in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in line]
        for folder in folders
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    weights, expected = (load_file(folder / "model/model.safetensors") for folder in folders)
    for name in ("dense.w_v", "dense.w_t"):
        assert weights[name].flatten().tolist() == pytest.approx(expected[name].flatten().tolist(), abs=1e-4)
