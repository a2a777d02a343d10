"""bf16 score passes with float32 sums and weights: the losses of float32."""

import subprocess
import sys

import pytest

from conftest import ROOT
from tests.distributed.test_resume import losses


def test_fifty_steps_of_bf16_scores_lose_like_float32(write_config, tmp_path):
    lines = {}
    for precision in ("fp32", "bf16"):
        config = write_config(
            name=precision,
            training={"score_precision": precision, "batch_size": 64},
            clean={"objective": "full_catalog", "epochs": 2},
            adversarial={"epochs": 1, "projected_precision": precision},
        )
        subprocess.run([sys.executable, "train.py", config], cwd=ROOT, check=True, capture_output=True)
        lines[precision] = [line for line in losses(tmp_path / "runs" / precision) if "loss" in line]
    assert len(lines["fp32"]) >= 50
    for ours, truth in zip(lines["bf16"][:50], lines["fp32"][:50], strict=True):
        for term in ("bpr", "bpr_adversarial"):
            if term in truth:
                assert ours[term] == pytest.approx(truth[term], rel=1e-3), truth["step"]
    assert lines["bf16"][0]["bpr"] != lines["fp32"][0]["bpr"]  # the option does something
