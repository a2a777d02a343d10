"""Rankings and certificates that were interrupted go on, and give the figures of undisturbed ones."""

import numpy as np
import pytest

from tests.unit.random_model import RandomModel
from uatmc_dist.config import AttackConfig, Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation import kept, sweep
from uatmc_dist.evaluation.certificate import certify
from uatmc_dist.evaluation.kept import KeptLists, KeptParts, KeptSweep
from uatmc_dist.evaluation.mismatch import Measured, measure_mismatch
from uatmc_dist.evaluation.ranking import RankedUsers, rank_model

CONFIG = AttackConfig(k=5, epsilons=[0.05, 0.3])


class TinyCatalog:
    def titles(self):
        return ["id"] * 60, ["title"] * 60


def ranked(catalog, kept_lists=None, told=lambda done, total: None, at_once=7):
    lists: list[RankedUsers] = []
    model = RandomModel(catalog.num_users, catalog.num_items, 6)
    figures = rank_model(model, catalog, "test", at_once, told, lists.append, kept_lists)  # type: ignore[arg-type]
    return figures, *(np.concatenate([np.asarray(found[part]) for found in lists]) for part in range(3))


def interrupted_at(step):
    def told(done, total):
        if done >= step:
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize("cut, at_once, used", [(0, 7, 21), (30, 7, 14), (0, 5, 20), (700, 11, 11)])
def test_a_ranking_goes_on(tiny_catalog, tmp_path, monkeypatch, cut, at_once, used):
    catalog, path = Catalog(tiny_catalog), tmp_path / "evaluation-x.lists"
    undisturbed = ranked(catalog)
    interrupted = KeptLists(path)
    with pytest.raises(KeyboardInterrupt):
        ranked(catalog, interrupted, interrupted_at(21))
    interrupted.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    added, add = [], KeptLists.add
    monkeypatch.setattr(KeptLists, "add", lambda self, start, *lists: added.append(start) or add(self, start, *lists))
    resumed = KeptLists(path)
    again = ranked(catalog, resumed, at_once=at_once)
    resumed.close()
    assert added[0] == used and again[0] == undisturbed[0]
    for one, other in zip(again[1:], undisturbed[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    whole = KeptLists(path)
    scores, ids = whole.lists(0, len(undisturbed[1])) or ([], [])
    np.testing.assert_array_equal(ids, undisturbed[2])
    np.testing.assert_array_equal(scores, undisturbed[3])
    whole.drop()
    assert not list(tmp_path.iterdir())


def test_one_process_keeps_lists_at_a_time(tiny_catalog, tmp_path):
    path = tmp_path / "evaluation-x.lists"
    interrupted = KeptLists(path)
    with pytest.raises(KeyboardInterrupt):
        ranked(Catalog(tiny_catalog), interrupted, interrupted_at(21))
    interrupted.close()
    one = KeptLists(path)
    other, size = KeptLists(path), path.stat().st_size
    assert one.lists(0, 21) is not None and other.lists(0, 21) is None
    other.add(0, *one.lists(0, 7))
    other.drop()
    assert path.stat().st_size == size
    one.drop()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_no_ranking(tiny_catalog, tmp_path, monkeypatch, caplog):
    def full(file, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.os, "ftruncate", full)
    assert (
        ranked(Catalog(tiny_catalog), KeptLists(tmp_path / "evaluation-x.lists"))[0] == ranked(Catalog(tiny_catalog))[0]
    )
    assert caplog.text.count("No space left on device") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_certificate_goes_on(tmp_path, monkeypatch, step):
    monkeypatch.setattr(sweep, "_USERS_AT_ONCE", 20)
    monkeypatch.setattr(kept, "_EVERY_SECONDS", -1.0)
    model, catalog = RandomModel(50, 60, 6), TinyCatalog()
    undisturbed = certify(model, catalog, CONFIG)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        certify(model, catalog, CONFIG, None, interrupted_at(step), KeptSweep(tmp_path, "x"))  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("certificate-x-0of1-*.npz"))) == min(step, 2)
    told, again = [], KeptSweep(tmp_path, "x")
    found = certify(model, catalog, CONFIG, None, lambda *at: told.append(at), again)  # type: ignore[arg-type]
    assert told == [(done, 3 * 5) for done in range(step, 16)]
    assert found.report == undisturbed.report
    for name, column in undisturbed.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)
    again.drop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("other, agreed", [(3, 3), (2, 2), (0, None)], ids=["as far", "one behind", "has none"])
def test_ranks_agree_where_to_go_on(tmp_path, monkeypatch, other, agreed, cut):
    monkeypatch.setattr(kept, "_EVERY_SECONDS", -1.0)
    here = KeptSweep(tmp_path, "x")
    for step in (1, 2, 3):
        here.save(step, counts=np.arange(step))
    if cut:  # a power failure
        here._file(3).write_bytes(b"")
        agreed = agreed and 2
    asked = iter([-other, int(other == 0)])
    monkeypatch.setattr(kept, "max_over_ranks", lambda value: value.clamp(min=next(asked)))
    found = KeptSweep(tmp_path, "x").load()
    assert (None if found is None else (found[0], found[1]["counts"].tolist())) == (
        None if agreed is None else (agreed, list(range(agreed)))
    )
    assert here._steps() == ({2, agreed} if agreed else set())  # what is written from here on is the newest


def test_nothing_is_written_of_a_short_certificate(tmp_path):
    certify(RandomModel(50, 60, 6), TinyCatalog(), CONFIG, kept=KeptSweep(tmp_path, "x"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [0, 30])
def test_mismatch_goes_on(tiny_catalog, tmp_path, cut):
    catalog, path = Catalog(tiny_catalog), tmp_path / "mismatch-x.jsonl"
    config, model = Config(name="x", catalog=tiny_catalog), RandomModel(catalog.num_users, catalog.num_items, 6)
    built = []

    def measure(told, parts=None):
        built.clear()
        start = lambda: built.append("start") or Measured.whole(model)  # noqa: E731
        return measure_mismatch(config, catalog, Measured.whole(model), start, told, parts)

    undisturbed = measure(lambda done, total: None)
    with pytest.raises(KeyboardInterrupt):
        measure(interrupted_at(14), KeptParts(path))
    before = path.read_text()
    path.write_text(before[: len(before) - cut])  # the last line, as a crash may cut it
    resumed = KeptParts(path)
    assert measure(lambda done, total: None, resumed) == undisturbed
    assert not built  # all of what the run started from was kept
    assert path.read_text().startswith(before[: len(before) - cut])
    resumed.drop()
    assert not list(tmp_path.iterdir())


def test_ranks_go_on_with_the_parts_that_all_of_them_see(tmp_path, monkeypatch):
    path = tmp_path / "attack-x.jsonl"
    for name in "abc":
        KeptParts(path).found([1, name], lambda name=name: name)
    monkeypatch.setattr(kept, "max_over_ranks", lambda value: value.clamp(min=-2))  # another one sees two
    parts = KeptParts(path)
    assert [parts.found([1, name], lambda: "anew") for name in "abc"] == ["a", "b", "anew"]


def test_parts_that_cannot_be_kept_cost_a_warning(tmp_path, caplog):
    parts = KeptParts(tmp_path / "no folder/attack-x.jsonl")
    assert [parts.found(name, lambda: 1) for name in "ab"] == [1, 1]
    assert caplog.text.count("would begin anew") == 1
    parts.drop()
