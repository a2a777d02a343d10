"""The catalog on disk: synthesis, opening, refusal of damaged files."""

import json

import numpy as np
import pytest

from uatmc_dist import checksums
from uatmc_dist.data import catalog as catalog_module
from uatmc_dist.data import catalog_writer
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.describe import describe_features, popularity_quantiles
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.errors import UserError

SIZES = {"users": 120, "items": 90, "interactions": 900, "visual_dim": 10, "text_dim": 6}


def test_synthesis_is_exact_reproducible_and_long_tailed(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_writer, "_BLOCK_BYTES", 400)  # many blocks
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        synthesize(tmp_path / name, **SIZES, seed=seed)
    a, b, c = (Catalog(tmp_path / name) for name in "abc")
    assert (a.num_users, a.num_items, len(a.interactions())) == (120, 90, 900)
    rows = np.arange(90)
    np.testing.assert_array_equal(a.features["visual"].rows(rows), b.features["visual"].rows(rows))
    np.testing.assert_array_equal(a.interactions().items, b.interactions().items)
    assert not np.array_equal(a.features["visual"].rows(rows), c.features["visual"].rows(rows))
    pairs = a.interactions()
    assert len(np.unique(pairs.users * 90 + pairs.items)) == 900
    for split in range(3):
        assert set(pairs.users[pairs.splits == split]) == set(range(120))
    quantiles = popularity_quantiles(a)
    assert quantiles[1.0] > 2 * quantiles[0.5]


@pytest.mark.parametrize("change", [{"interactions": 100}, {"interactions": 9000}, {"items": 0}, {"users": -1}])
def test_impossible_sizes_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="--"):
        synthesize(tmp_path / "x", **{**SIZES, **change}, seed=0)


@pytest.mark.parametrize("file", ["interactions.parquet", "items.parquet", "features/visual.arrow", "catalog.json"])
@pytest.mark.parametrize("damage", ["cut", "removed", "overwritten"])
def test_damaged_files_are_named(tmp_path, file, damage):
    synthesize(tmp_path / "x", **SIZES, seed=0)
    path = tmp_path / "x" / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "removed":
        path.unlink()
    else:
        path.write_bytes(b"\0" * len(content))
    with pytest.raises(UserError) as error:
        catalog = Catalog(tmp_path / "x")
        catalog.interactions()
        catalog.titles()
    assert file.split("/")[-1] in str(error.value) and "\n" not in str(error.value)


def flip_a_bit(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["interactions.parquet", "items.parquet", "features/visual.arrow"])
def test_one_changed_bit_is_found(tmp_path, file):
    synthesize(tmp_path / "x", **SIZES, seed=0)
    flip_a_bit(tmp_path / "x" / file, (tmp_path / "x" / file).stat().st_size // 2)
    with pytest.raises(UserError, match="damaged, its bytes are not those that were written; make the catalog again"):
        catalog = Catalog(tmp_path / "x")
        catalog.interactions()
        catalog.titles()


def test_only_the_chunks_that_are_read_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_writer, "_BLOCK_BYTES", 400)
    monkeypatch.setattr(checksums, "CHUNK", 512)
    synthesize(tmp_path / "x", **SIZES, seed=0)
    file = tmp_path / "x" / "features/visual.arrow"
    before = Catalog(tmp_path / "x").features["visual"].rows(np.arange(90))
    row = file.read_bytes().find(before[45].astype(np.float16).tobytes())
    flip_a_bit(file, row)
    features = Catalog(tmp_path / "x").features["visual"]
    np.testing.assert_array_equal(features.rows(np.array([0, 89])), before[[0, 89]])
    with pytest.raises(UserError, match=r"visual\.arrow: damaged"):
        features.rows(np.array([45]))


def test_a_catalog_without_checksums_opens(tmp_path):
    synthesize(tmp_path / "x", **SIZES, seed=0)
    meta = json.loads((tmp_path / "x" / "catalog.json").read_text())
    del meta["checksums"]
    (tmp_path / "x" / "catalog.json").write_text(json.dumps(meta))
    assert len(Catalog(tmp_path / "x").interactions()) == 900


def test_a_catalog_is_not_overwritten_by_accident(tmp_path):
    synthesize(tmp_path / "x", **SIZES, seed=0)
    with pytest.raises(UserError, match="--overwrite"):
        synthesize(tmp_path / "x", **SIZES, seed=0)
    synthesize(tmp_path / "x", **SIZES, seed=1, overwrite=True)


def test_description_counts_duplicates_and_zero_rows(tmp_path):
    writer = catalog_writer.CatalogWriter(tmp_path / "x", "x", 1, 6)
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    rows[1], rows[2], rows[5] = 0, 0, rows[4]
    with writer.features("visual", 4, rows.dtype, "hand", "rows") as features:
        features.write(rows[:3])
        features.write(rows[3:])
    zeros = np.zeros(1, dtype=np.int64)
    writer.interactions(catalog_module.Interactions(zeros, zeros, zeros, zeros))
    writer.finish(["0"] * 6, [""] * 6, {})
    summary = describe_features(Catalog(tmp_path / "x").features["visual"])
    assert (summary.zero_share, summary.duplicate_share) == (pytest.approx(2 / 6), pytest.approx(2 / 6))
    assert json.loads((tmp_path / "x" / "catalog.json").read_text())["num_items"] == 6


def test_a_catalog_json_that_is_none_is_refused(tmp_path):
    (tmp_path / "catalog.json").write_text("[]")
    with pytest.raises(UserError, match=r"catalog\.json: not a uatmc-catalog"):
        Catalog(tmp_path)


def test_what_float16_cannot_hold_is_refused(tmp_path):
    writer = catalog_writer.CatalogWriter(tmp_path / "x", "x", 2, 3)
    rows = np.ones((3, 4))
    rows[2, 1] = 1e30
    with (
        pytest.raises(UserError, match=r"image\.npy: row 2 holds NaN, Inf or what is too large for float16"),
        writer.features("visual", 4, np.dtype(np.float16), "hand", "image.npy") as features,
    ):
        features.write(rows)


def test_another_catalog_of_the_same_sizes_has_another_digest(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(tmp_path / name, **SIZES, seed=seed)
    a, b, c = (Catalog(tmp_path / name).meta | {"name": ""} for name in "abc")
    assert a == b and a != c and Catalog(tmp_path / "a").digest != Catalog(tmp_path / "c").digest
