"""1, 2 and 4 gloo ranks give the same losses and metrics, in both objectives and with every adversary."""

import json
from pathlib import Path

import pytest

from conftest import ONE_USER, on_ranks
from tests.distributed.scenarios import COMPARED, of_ranks

SCRIPT = Path(__file__).parent / "scenarios.py"
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


@pytest.fixture(scope="module")
def seen(tmp_path_factory, tiny_catalog):
    import yaml

    from conftest import TINY

    folder = tmp_path_factory.mktemp("ranks")
    config = folder / "base.yaml"
    values = {**TINY, "catalog": str(tiny_catalog), "output_dir": str(folder / "runs"), "adversarial": {"epochs": 2}}
    config.write_text(yaml.safe_dump(values))
    results = {}
    for ranks in (1, 2, 4):
        out = folder / f"{ranks}.json"
        on_ranks(ranks, SCRIPT, config, out, timeout=900)
        results[ranks] = json.loads(out.read_text())
    return results


@pytest.mark.parametrize("ranks, scenario", [(ranks, name) for ranks in (2, 4) for name in of_ranks(ranks)])
def test_losses_equal_those_of_one_rank(seen, scenario, ranks):
    ours, one = seen[ranks][scenario]["losses"], seen[1][scenario]["losses"]
    assert len(ours) == COMPARED and len(one) > COMPARED
    # float32: rounding adds 1e-7 a step at most (test_resume.py), and this is five times as much. bf16: ten roundings
    # of 2^-9. A sign step (linf) is not continuous: a gradient that is zero but for rounding may take either sign.
    # The score shifts of an item with a single pair are parallel: the slope of their cosine is rounding (users).
    tolerance = {"bf16": 2e-2, "full/uat_mc/linf": 1e-2, "own users/sampled/users": 1e-4}.get(scenario, 1e-5)
    for step, (terms, expected) in enumerate(zip(ours, one, strict=False)):
        assert terms == {name: pytest.approx(value, rel=tolerance) for name, value in expected.items()}, f"step {step}"


@pytest.mark.parametrize("scenario", GOLDEN)
def test_losses_are_what_they_always_were(seen, scenario):
    """Recorded before models/backbone.py and training/ were made; to 1e-4, as processors round differently."""
    losses = [terms["loss"] for terms in seen[1][scenario]["losses"]]
    assert losses == pytest.approx(GOLDEN[scenario], rel=1e-4)


@pytest.mark.parametrize(
    "ranks, scenario", [(ranks, name) for ranks in (2, 4) for name in of_ranks(ranks) if name != "bf16"]
)
def test_metrics_equal_those_of_one_rank(seen, scenario, ranks):
    # Equal weights give equal metrics, bit by bit (test_phases.py); these agree but for rounding.
    ours, one = seen[ranks][scenario]["valid"], seen[1][scenario]["valid"]
    assert len(ours) == 2
    for metrics, expected in zip(ours, one, strict=False):
        names = [name for name in expected if name.startswith("valid/")]
        assert len(names) > 10 and metrics["step"] == expected["step"]
        for name in names:
            assert metrics[name] == pytest.approx(expected[name], rel=0, abs=2 * ONE_USER), name


def test_the_losses_fall(seen):
    for scenario, result in seen[1].items():
        last = result["losses"][-1]
        term = next(name for name in ("bpr", "bpr_certified") if name in last)
        first = next(losses for losses in result["losses"] if term in losses)
        assert last[term] < first[term], scenario
