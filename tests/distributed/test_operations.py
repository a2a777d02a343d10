"""How many operations of PyTorch a step dispatches."""

from pathlib import Path

from conftest import on_ranks


def test_a_step_dispatches_few_operations(write_config):
    config = write_config(adversarial={"epochs": 1})
    assert "few operations" in on_ranks(1, Path(__file__).parent / "operations.py", config)
