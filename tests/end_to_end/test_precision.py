"""bf16 score passes with float32 sums and weights: the losses of float32."""

from pathlib import Path

import pytest

from conftest import train
from tests.distributed.test_resume import losses

BATCH = 64
ROUNDING = 2**-8 / BATCH**0.5
"""bf16 keeps 8 bits, so a factor of a score is off by 2^-9 of itself at most, and a product by 2^-8. One user's
rounding says nothing of another's, so their mean is off by less: by about this."""


@pytest.fixture
def trained(write_config, tmp_path):
    """Trains in this format and returns the lines of all steps."""

    def lines(precision: str, name: str, *overrides: str | Path) -> list[dict]:
        config = write_config(
            name=name,
            training={"score_precision": precision, "batch_size": BATCH},
            clean={"objective": "full_catalog", "epochs": 4},
            adversarial={"epochs": 0, "projected_precision": precision},
        )
        done = train(config, *overrides)
        assert done.returncode == 0, done.stderr
        return [line for line in losses(tmp_path / "runs" / name) if "loss" in line]

    return lines


def test_losses_of_bf16_scores_are_those_of_float32(trained, tmp_path):
    truth, ours = (trained(precision, precision) for precision in ("fp32", "bf16"))
    assert len(truth) == len(ours) >= 50
    # Two trainings drift apart, on each processor in its own way; how far the loss falls is a matter of the gradients.
    fall = truth[0]["bpr"] - truth[-1]["bpr"]
    assert abs(ours[-1]["bpr"] - truth[-1]["bpr"]) < 0.05 * fall
    assert ours[0]["bpr"] != truth[0]["bpr"]  # the option does something

    # At the same weights: those of the run in float32, which steps as small as these leave as they are.
    still = f"start_from={tmp_path}/runs/fp32", "adversarial.epochs=1", "training.lr=1e-30", "tables.lr=1e-30"
    truth, ours = (trained(precision, f"{precision}-still", *still) for precision in ("fp32", "bf16"))
    assert len(truth) == len(ours) >= 15
    for line, expected in zip(ours, truth, strict=True):
        for term in ("bpr", "bpr_adversarial"):
            assert line[term] == pytest.approx(expected[term], rel=2 * ROUNDING), (term, line["step"])
            assert line[term] != expected[term]
