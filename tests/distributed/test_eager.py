"""AMR and Mirror Gradient against straightforward eager implementations of their papers, and adversaries at the encoder
against one."""

from pathlib import Path

import pytest

from conftest import on_ranks

SCRIPT = Path(__file__).parent / "eager.py"


@pytest.mark.parametrize("name", ["amr", "mirror_gradient", "encoder"])
def test_the_trainer_does_what_an_eager_implementation_does(write_config, name):
    config = write_config(
        adversarial={"epochs": 1, "objective": "sampled"}, training={"reg_weight": 0.1, "reg_kind": "squared"}
    )
    assert f"{name}: equal" in on_ranks(1, SCRIPT, config, name)
