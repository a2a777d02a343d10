"""Fewer items or users than ranks need: some own no row at all, and the losses are those of one rank."""

import json

import numpy as np
import pytest

from conftest import on_ranks
from tests.distributed.test_resume import losses
from uatmc_dist.data.catalog import Interactions
from uatmc_dist.data.catalog_writer import CatalogWriter

ITEMS, USERS = 9, 5  # on four ranks: 3, 3, 3, 0 items and 2, 2, 1, 0 users


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "catalog"
    rng = np.random.default_rng(0)
    writer = CatalogWriter(folder, "few", USERS, ITEMS)
    for modality, width in (("visual", 7), ("text", 5)):
        rows = rng.standard_normal((ITEMS, width), dtype=np.float32)
        with writer.features(modality, width, rows.dtype, "hand", modality) as features:
            features.write(rows)
    users = np.repeat(np.arange(USERS), 6)
    items = np.concatenate([(np.arange(6) + 2 * user) % ITEMS for user in range(USERS)])
    writer.interactions(Interactions(users, items, np.arange(len(users)), np.tile([0, 0, 0, 0, 1, 2], USERS)))
    writer.finish([str(item) for item in range(ITEMS)], [""] * ITEMS, {})
    return folder


@pytest.mark.parametrize("user", ["row", "history"])
def test_ranks_without_rows(write_config, tmp_path, few, user):
    seen = {}
    for ranks in (1, 4):
        config = write_config(
            name=f"few-{ranks}",
            catalog=str(few),
            model={"user": user},
            training={"batch_size": 7},
            clean={"epochs": 3, "objective": "sampled"},
            adversarial={"epochs": 3, "objective": "full_catalog"},
            checkpoint={"every_steps": 4},
        )
        on_ranks(ranks, "train.py", config)
        run = tmp_path / "runs" / f"few-{ranks}"
        seen[ranks] = losses(run)
        traffic = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        moved = {name: line[name] for line in traffic[1:2] for name in ("all_gathered_bytes", "reduced_bytes")}
        assert all((value > 0) == (ranks > 1) for value in moved.values())
    assert len(seen[1]) == len(seen[4]) > 15
    for ours, truth in zip(seen[4], seen[1], strict=True):
        terms = {name: value for name, value in truth.items() if isinstance(value, float) and "valid" not in name}
        assert {name: ours[name] for name in terms} == pytest.approx(terms, rel=1e-4)


def test_ranks_without_rows_attack_a_graph(write_config, tmp_path, few):
    config = write_config(
        catalog=str(few),
        model={"backbone": "mmgcn", "visual_hidden": [], "text_hidden": []},
        training={"batch_size": 7},
        clean={"align_weight": 0},
        adversarial={"epochs": 0},
        attack={"k": 3, "attacks": ["pgd"], "num_targets": 2, "seeds": [1], "epsilons": [0.3], "any_content": False},
    )
    on_ranks(1, "train.py", config)
    run, found = tmp_path / "runs/tiny", []
    for ranks in (1, 4):
        on_ranks(ranks, "tests/uatmc.py", "attack", run)
        results = json.loads((run / "attack.json").read_text())["results"]
        found.append([{name: one[name] for name in one if name != "seconds"} for one in results])
    assert found[0] == found[1]
