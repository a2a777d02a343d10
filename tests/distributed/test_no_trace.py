"""The inner step leaves parameters, gradients, tables, optimiser state and random states bit-identical."""

from pathlib import Path

import pytest

from conftest import on_ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_inner_step_leaves_no_trace(write_config, ranks):
    config = write_config(adversarial={"epochs": 1})
    assert "no trace" in on_ranks(ranks, Path(__file__).parent / "no_trace.py", config)
