"""A loss that is not finite stops the run: step, phase and term are named, and a good checkpoint is there."""

import json

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from conftest import train


@pytest.mark.parametrize("override", ["tables.lr=1e30", "training.lr=1e37", "training.reg_weight=1e41"])
def test_the_run_stops_with_a_good_checkpoint(write_config, tmp_path, override):
    config = write_config()
    done = train(config, override)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "clean phase" in line and "the loss term " in line and "step " in line
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    latest = checkpoints / (checkpoints / "latest").read_text()
    assert str(latest) in line
    assert json.loads((latest / "position.json").read_text())["position"]["phase"] == "clean"
    dcp_to_torch_save(latest, tmp_path / "whole.pt")
    weights = torch.load(tmp_path / "whole.pt", weights_only=False)["dense"]
    assert all(weight.isfinite().all() for weight in weights.values())
