"""Baselines against plain formulas; their cache in the catalog; what a model is told that is below one."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT
from uatmc_dist.config import Config
from uatmc_dist.data import catalog as catalog_module
from uatmc_dist.data import catalog_writer
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.data.mmrec import import_mmrec
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.evaluation import baselines, comparison
from uatmc_dist.evaluation.baselines import Ease, Nearest, at_random, most_popular
from uatmc_dist.evaluation.beyond import BEYOND, BeyondAccuracy
from uatmc_dist.evaluation.comparison import Baselines, Comparison, together
from uatmc_dist.evaluation.ending import compare_at_the_end, kept_epochs
from uatmc_dist.evaluation.ranking import RankedUsers, rank_lists

REAL = ROOT.parent / "shared" / "data"
FIGURES = {"recall@20": 0.3, **dict.fromkeys(BEYOND, 0.1)}


@pytest.fixture
def catalog(tiny_catalog, tmp_path) -> Catalog:
    """A copy of its own, without what other tests kept in it."""
    shutil.copytree(tiny_catalog, tmp_path / "catalog", ignore=shutil.ignore_patterns("baselines", "projected"))
    return Catalog(tmp_path / "catalog")


def write_catalog(path: Path, features: dict[str, np.ndarray], pairs: list[tuple[int, int, int]]) -> Catalog:
    """`pairs`: user, item, split."""
    users, items, splits = (np.array(column) for column in zip(*pairs, strict=True))
    num_items = len(next(iter(features.values())))
    writer = catalog_writer.CatalogWriter(path, "made", int(users.max()) + 1, num_items)
    for name, rows in features.items():
        with writer.features(name, rows.shape[1], rows.dtype, "hand", "rows") as file:
            file.write(rows)
    writer.interactions(catalog_module.Interactions(users, items, np.zeros_like(users), splits))
    writer.finish(["x"] * num_items, [""] * num_items, {})
    return Catalog(path)


def ranked_by(scores_UN: np.ndarray, catalog: Catalog, k: int) -> list[list[int]]:
    """The lists that these scores make, training items left out, ties by item."""
    seen = set(zip(*(column.tolist() for column in catalog.split("train")), strict=True))
    lists = []
    for user, scores in enumerate(scores_UN.tolist()):
        left = [item for item in range(len(scores)) if (user, item) not in seen]
        lists.append(sorted(left, key=lambda item, scores=scores: (-scores[item], item))[:k])
    return lists


def lists_of(best, catalog: Catalog, k: int) -> list[list[int]]:
    _, ids_Uk = best(torch.arange(catalog.num_users), k)
    return [[item for item in row if item >= 0] for row in ids_Uk.tolist()]


def training_matrix(catalog: Catalog) -> np.ndarray:
    matrix_UN = np.zeros((catalog.num_users, catalog.num_items))
    matrix_UN[catalog.split("train")] = 1
    return matrix_UN


@pytest.mark.parametrize("exact", [True, False])
def test_ease_is_the_closed_form(catalog, exact, monkeypatch):
    monkeypatch.setattr(baselines, "_PAIRS_AT_A_TIME", 50)  # many chunks
    monkeypatch.setattr(baselines, "_FLOAT64_UP_TO", 4096 if exact else 0)
    matrix_UN = training_matrix(catalog)
    inverse_NN = np.linalg.inv(matrix_UN.T @ matrix_UN + 7 * np.eye(catalog.num_items))
    weights_NN = -inverse_NN / np.diag(inverse_NN)
    np.fill_diagonal(weights_NN, 0)
    scores_UN = matrix_UN @ weights_NN
    best = Ease(KnownPositives.of_training(catalog), catalog.num_users).fitted(7)
    scores_Uk, ids_Uk = best(torch.arange(catalog.num_users), 10)
    np.testing.assert_allclose(scores_Uk, np.take_along_axis(scores_UN, ids_Uk.numpy(), axis=1), atol=1e-6)
    theirs = np.take_along_axis(scores_UN, np.array(ranked_by(scores_UN, catalog, 10)), axis=1)
    np.testing.assert_allclose(scores_Uk, theirs, atol=1e-6)


@pytest.mark.parametrize("modalities", [("text",), MODALITIES])
def test_nearest_is_the_mean_row_times_all_rows_and_zero_rows_stay_zero(tmp_path, monkeypatch, modalities):
    monkeypatch.setattr(baselines, "_ITEMS_AT_A_TIME", 13)
    monkeypatch.setattr(baselines, "_ROWS_AT_A_TIME", 7)
    rng = np.random.default_rng(0)
    features = {name: rng.normal(1, 1, (40, width)).astype(np.float32) for name, width in (("visual", 6), ("text", 5))}
    features["text"][[3, 20, 21]] = 0
    pairs = [(user, int(item), 0) for user in range(15) for item in rng.choice(40, rng.integers(1, 9), replace=False)]
    catalog = write_catalog(tmp_path / "x", features, pairs)
    parts = []
    for name in modalities:
        rows = features[name].astype(np.float64)
        missing = ~rows.any(axis=1)
        centred = rows - rows[~missing].mean(axis=0)
        parts.append(centred / np.linalg.norm(centred, axis=1, keepdims=True) * ~missing[:, None])
    rows_ND, matrix_UN = np.concatenate(parts, axis=1), training_matrix(catalog)
    scores_UN = (matrix_UN / matrix_UN.sum(axis=1, keepdims=True)) @ rows_ND @ rows_ND.T
    best = Nearest(catalog, modalities, KnownPositives.of_training(catalog))
    assert lists_of(best, catalog, 40) == ranked_by(scores_UN, catalog, 40)
    assert len(modalities) > 1 or not scores_UN[:, [3, 20, 21]].any()


def test_nearest_with_equal_features_ranks_by_item(tmp_path):
    rows = np.full((9, 4), 0.3, dtype=np.float32)
    catalog = write_catalog(tmp_path / "x", {"text": rows}, [(0, 2, 0)])
    best = Nearest(catalog, ("text",), KnownPositives.of_training(catalog))
    assert lists_of(best, catalog, 4) == [[0, 1, 3, 4]]


def test_popularity_counts_training_interactions(catalog):
    counts_N = training_matrix(catalog).sum(axis=0)
    best = most_popular(catalog, KnownPositives.of_training(catalog))
    for k in (20, catalog.num_items + 5):
        expected = ranked_by(np.tile(counts_N, (catalog.num_users, 1)), catalog, k)
        assert lists_of(best, catalog, k) == expected


def test_random_lists_hold_no_item_twice_and_none_of_training(catalog):
    known = KnownPositives.of_training(catalog)
    lists = lists_of(at_random(known, catalog.num_users), catalog, 50)
    assert lists == lists_of(at_random(known, catalog.num_users), catalog, 50)
    assert all(len(set(row)) == 50 for row in lists)
    assert not any(training_matrix(catalog)[user, row].any() for user, row in enumerate(lists))
    assert len({tuple(row) for row in lists}) > 100


def test_beyond_accuracy_against_plain_counts(catalog):
    best = at_random(KnownPositives.of_training(catalog), catalog.num_users)
    trained = training_matrix(catalog).sum(axis=0)
    users, items = catalog.split("test")
    beyond = BeyondAccuracy(catalog, "test")
    lists: dict[int, list[int]] = {}

    def on_ranked(ranked: RankedUsers) -> None:
        beyond.add(ranked)
        lists.update(zip(ranked.users_B.tolist(), ranked.items_Bk[:, :20].tolist(), strict=True))

    rank_lists(
        best, catalog.split("test"), catalog.num_users, catalog.num_items, users_per_batch=37, on_ranked=on_ranked
    )
    shown = [item for row in lists.values() for item in row]
    counts = np.bincount(shown, minlength=catalog.num_items)
    differences = np.abs(counts[:, None] - counts[None, :]).sum()
    recalls = []
    for user, row in lists.items():
        cold = {item for owner, item in zip(users, items, strict=True) if owner == user and trained[item] < 5}
        if cold:
            recalls.append(len(cold & set(row)) / len(cold))
    assert beyond.metrics() == pytest.approx(
        {
            "coverage@20": (counts > 0).mean(),
            "gini@20": differences / (2 * catalog.num_items * counts.sum()),
            "cold_share@20": np.mean([trained[item] < 5 for item in shown]),
            "cold_recall@20": np.mean(recalls),
        }
    )


def test_no_relevant_cold_item_is_none_and_a_single_item_is_the_most_uneven(tmp_path):
    pairs = [(user, 0, 0) for user in range(6)] + [(user, 0, 2) for user in range(6)]
    catalog = write_catalog(tmp_path / "x", {"text": np.eye(10, dtype=np.float32)}, pairs)
    beyond = BeyondAccuracy(catalog, "test")
    beyond.add(RankedUsers(torch.arange(6), torch.full((6, 1), 0), torch.zeros(6, 1)))
    assert beyond.metrics() == pytest.approx(
        {"coverage@20": 0.1, "gini@20": 0.9, "cold_share@20": 0.0, "cold_recall@20": None}
    )


def compared(catalog: Catalog, run: Path = Path("run"), within_s: float = 1e9, value: float = 0.5) -> Comparison:
    return Baselines(catalog).compare("recall@20", "test", value, run, within_s)


def test_figures_are_measured_once_a_catalog(catalog, monkeypatch):
    first = compared(catalog)
    assert list(first.figures) == ["random", "popularity", "knn_visual", "knn_text", "knn_both", "ease"]
    assert first.figures["ease"]["lambda"] in comparison.LAMBDAS and not first.left_out
    kept = json.loads((catalog.path / "baselines/test.json").read_text())
    assert kept["figures"].keys() == first.figures.keys()
    # What is kept of the validation split is the choice of lambda.
    assert json.loads((catalog.path / "baselines/valid.json").read_text())["figures"].keys() == {"ease"}
    monkeypatch.setattr(comparison, "rank_lists", None)
    assert compared(Catalog(catalog.path)).figures == first.figures
    assert not list(catalog.path.glob("baselines/.*"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"catalog": "other", "figures": {"random": {"recall@20": 1.0}}}'])
def test_a_damaged_or_foreign_cache_is_measured_again(catalog, damage):
    first = compared(catalog)
    (catalog.path / "baselines/test.json").write_text(damage)
    assert compared(catalog).figures == first.figures


def test_a_remade_catalog_is_not_served_what_was_measured_before(catalog):
    first = compared(catalog)
    synthesize(
        catalog.path, users=230, items=203, interactions=1600, visual_dim=20, text_dim=12, seed=4, overwrite=True
    )
    assert not (catalog.path / "baselines").exists()
    # Also where a command that began before goes on writing.
    Baselines(catalog).record_bpr_mf("test", FIGURES, Path("run"))
    second = compared(Catalog(catalog.path))
    assert "bpr_mf" not in second.figures and second.figures["popularity"] != first.figures["popularity"]


def test_a_catalog_that_cannot_be_written_is_compared_all_the_same(catalog, caplog):
    (catalog.path / "baselines").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert len(compared(catalog).figures) == 6
    assert [record for record in caplog.records if "not kept" in record.message] == caplog.records[:1]


def test_a_catalog_with_one_modality_has_one_nearest(tmp_path):
    pairs = [(user, user, 0) for user in range(8)] + [(user, (user + 1) % 8, 1 + user % 2) for user in range(8)]
    catalog = write_catalog(tmp_path / "x", {"text": np.eye(8, dtype=np.float32)}, pairs)
    assert list(compared(catalog).figures) == ["random", "popularity", "knn_text", "ease"]


def test_what_is_too_large_or_too_slow_is_left_out_and_said(catalog, monkeypatch):
    monkeypatch.setattr(comparison, "EASE_UP_TO", 202)
    beside = compared(catalog)
    assert beside.gaps() == ["EASE is left out: 203 items are more than 202"] and not beside.slow
    assert "ease" not in beside.figures
    shutil.rmtree(catalog.path / "baselines")
    beside = compared(catalog, within_s=0)
    assert not beside.figures and "random" in beside.slow and "no baseline" in beside.verdict()
    assert "ease" not in beside.slow


def test_a_run_without_content_is_a_baseline_of_others_and_not_of_itself(catalog, tmp_path):
    recorder = Baselines(catalog)
    recorder.record_bpr_mf("test", FIGURES, tmp_path / "good")
    recorder.record_bpr_mf("test", {**FIGURES, "recall@20": 0.2}, tmp_path / "worse")
    assert compared(catalog).figures["bpr_mf"]["run"] == str(tmp_path / "good")
    assert "bpr_mf" not in compared(catalog, run=tmp_path / "good").figures
    recorder.record_bpr_mf("test", {**FIGURES, "recall@20": 0.1}, tmp_path / "good")  # the same run, trained again
    assert compared(catalog).figures["bpr_mf"]["recall@20"] == 0.1


def test_the_verdict_names_what_the_model_is_below():
    figures = {"popularity": {"recall@20": 0.0463}, "ease": {"recall@20": 0.1757}, "random": {"recall@20": 0.005}}
    beside = Comparison("recall@20", "test", 0.0422, figures, {})
    assert beside.below == ["ease", "popularity"]
    assert beside.verdict() == (
        "below EASE (0.1757), popularity (0.0463): recall@20 0.0422 on the test split; "
        "try configs/default.yaml, or uatmc tune"
    )
    above = Comparison("recall@20", "test", 0.2, figures, {})
    assert not above.below and "best of which is EASE (0.1757)" in above.verdict()


def test_runs_are_compared_with_the_baselines_of_their_own_catalog():
    def evaluation(name: str, recall: float, **figures: float) -> dict:
        return {
            "split": "test",
            "recall@20": recall,
            "catalog": {"name": name, "digest": name},
            "metric": "recall@20",
            "baselines": {key: {"recall@20": value} for key, value in figures.items()},
        }

    groups = together(
        {
            Path("a"): evaluation("shoes", 0.2, popularity=0.1),
            Path("b"): evaluation("hats", 0.2, popularity=0.3),
            Path("c"): evaluation("shoes", 0.05, popularity=0.1, ease=0.25),
            Path("old"): {"split": "test", "recall@20": 0.1},
        }
    )
    assert [name for name, _, _ in groups] == ["shoes, test", "hats, test", "unknown catalog, test"]
    below = {run.name: beside.below for _, _, compared in groups for run, beside in compared.items()}
    assert below == {"a": ["ease"], "b": ["popularity"], "c": ["ease", "popularity"], "old": []}


def test_the_end_of_training_tells_the_kept_epoch_and_compares_its_weights(catalog, tmp_path):
    values = {"name": "run", "catalog": catalog.path, "output_dir": tmp_path, "clean": {"epochs": 9, "patience": 2}}
    config = Config(**values, adversarial={"epochs": 2})
    lines = [("clean", epoch, recall) for epoch, recall in ((1, 0.1), (2, 0.3), (3, 0.3), (4, 0.2))]
    lines += [("adversarial", 1, 0.25), ("adversarial", 2, 0.15)]
    config.run_dir.mkdir()
    text = [json.dumps({"phase": phase, "epoch": e, "step": e, "valid/recall@20": r}) for phase, e, r in lines]
    (config.run_dir / "metrics.jsonl").write_text("\n".join(['{"step": 1, "loss": 0.1}', *text]) + "\n")
    assert kept_epochs(config) == ["kept: epoch 2 of 9 of the clean phase (valid recall@20 0.3000)"]
    beside = compare_at_the_end(config)
    assert beside is not None and (beside.value, beside.split) == (0.15, "valid")  # no patience: the last weights
    (config.run_dir / "metrics.jsonl").write_text("\n".join(text[:4]) + "\n")
    assert compare_at_the_end(config) is None  # the last phase was not evaluated
    assert compare_at_the_end(Config(**values)).value == 0.3


@pytest.mark.parametrize(
    "name, expected",
    [
        ("hmfashion", {"popularity": 0.0396, "knn_text": 0.1582, "ease": 0.1757}),
        ("baby", {"popularity": 0.0463}),
    ],
)
def test_figures_on_real_data(tmp_path, name, expected):
    if not (REAL / name).exists():
        pytest.skip(f"{REAL}/{name} is not there: baselines not tested on real data")
    import_mmrec(REAL / name, tmp_path / "x", {"visual": "-", "text": "-"})
    catalog = Catalog(tmp_path / "x")
    known = KnownPositives.of_training(catalog)
    make = {
        "popularity": lambda: most_popular(catalog, known),
        "knn_text": lambda: Nearest(catalog, ("text",), known),
        "ease": lambda: Ease(known, catalog.num_users).fitted(200),
    }
    for baseline, recall in expected.items():
        split = catalog.split("test")
        found = rank_lists(make[baseline](), split, catalog.num_users, catalog.num_items, users_per_batch=512)
        assert found["recall@20"] == pytest.approx(recall, abs=6e-5)
