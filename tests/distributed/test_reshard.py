"""Saved at 1, 2 and 4 ranks, resumed at 1, 2 and 4: the same state, and the losses of an undisturbed run."""

import json
from pathlib import Path

import pytest
import yaml

from conftest import TINY, on_ranks
from tests.distributed.reshard import SCENARIOS

SCRIPT = Path(__file__).parent / "reshard.py"
SIZES = (1, 2, 4)


@pytest.fixture(scope="module")
def seen(tmp_path_factory, tiny_catalog):
    folder = tmp_path_factory.mktemp("reshard")
    values = {**TINY, "catalog": str(tiny_catalog), "output_dir": str(folder / "runs"), "adversarial": {"epochs": 1}}
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    for mode in ("save", "resume"):
        for ranks in SIZES:
            on_ranks(ranks, SCRIPT, mode, folder)
    return {
        (mode, ranks): json.loads((folder / f"{mode}-{ranks}.json").read_text())
        for mode in ("save", "resume")
        for ranks in SIZES
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("saved_by", SIZES)
@pytest.mark.parametrize("resumed_by", SIZES)
def test_a_run_goes_on_at_any_number_of_ranks(seen, scenario, saved_by, resumed_by):
    saved = seen["save", saved_by][scenario]
    resumed = seen["resume", resumed_by][f"{scenario}/{saved_by}"]
    # Tables, fused optimiser state, dense weights, moments: the same numbers, summed in another order.
    assert resumed["state"].keys() == saved["state"].keys()
    assert resumed["state"] == pytest.approx(saved["state"], rel=1e-9, abs=1e-9)
    assert resumed["after"] == pytest.approx(saved["after"], rel=1e-6)
