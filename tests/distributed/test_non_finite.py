"""A loss that is not finite stops the run: step, phase and term are named, and a good checkpoint is there."""

import json

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from conftest import on_ranks, train


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


def test_a_model_that_is_not_finite_is_never_the_runs(write_config, tmp_path):
    """On a GPU losses are looked at on logging steps alone, and the last one may go bad after the last of them."""
    script = tmp_path / "between_logging_steps.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from uatmc_dist.config import load_config\n"
        "from uatmc_dist.errors import UserError\n"
        "from uatmc_dist.parallel import process_group\n"
        "from uatmc_dist.training import Trainer\n"
        "class Unwatched(Trainer):\n"
        "    def _refuse_non_finite(self, terms): pass\n"
        "trainer = Unwatched(load_config(Path(sys.argv[1]), ['tables.lr=1e30']), process_group.join())\n"
        "try:\n"
        "    trainer.fit()\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    config = write_config(clean={"epochs": 1}, adversarial={"epochs": 0})
    assert "clean phase: a weight is NaN or Inf" in on_ranks(1, script, config)
    assert not (tmp_path / "runs/tiny/model").exists()
