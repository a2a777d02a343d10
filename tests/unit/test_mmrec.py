"""Import of the MMRec convention: what is kept, what is left out, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mmrec_source import read_inter, write_inter, write_source
from uatmc_dist.data.catalog import Catalog, Interactions
from uatmc_dist.data.catalog_writer import CatalogWriter
from uatmc_dist.data.mmrec import export_mmrec, import_mmrec
from uatmc_dist.errors import UserError

ENCODERS = {"visual": "camera", "text": "typewriter"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_everything_arrives(tmp_path, dtype):
    source = write_source(tmp_path / "source", widths=(7, 3), dtype=dtype)
    (source / "item_text.csv").write_text('itemID,title,source_id\n1,"two\nlines",B01\n')
    import_mmrec(source, tmp_path / "out", ENCODERS)
    catalog = Catalog(tmp_path / "out")
    assert (catalog.name, catalog.num_users, catalog.num_items) == ("shop", 12, 9)
    for modality, file in (("visual", "image_feat.npy"), ("text", "text_feat.npy")):
        features = catalog.features[modality]
        expected = np.load(source / file)
        assert features.dtype == dtype and features.encoder == ENCODERS[modality]
        ids = np.array([3, 0, 3, 8])
        np.testing.assert_array_equal(features.rows(ids), expected[ids].astype(np.float32))
    kept = catalog.interactions()
    rows = set(zip(kept.users.tolist(), kept.items.tolist(), kept.splits.tolist(), strict=True))
    assert rows == set(read_inter(source))
    ids, titles = catalog.titles()
    assert (ids[1], titles[1], titles[0]) == ("B01", "two\nlines", "")


def test_duplicates_are_kept_once_in_the_earliest_split_and_counted(tmp_path):
    source = write_source(tmp_path / "source")
    rows = read_inter(source)
    user, item, _ = next(row for row in rows if row[2] == 0)
    write_inter(source, [(user, item, 2), *rows, rows[0]])
    notes = import_mmrec(source, tmp_path / "out", ENCODERS)
    assert notes["duplicated_interactions_dropped"] == 2
    kept = Catalog(tmp_path / "out").interactions()
    assert len(kept) == len(rows)
    assert kept.splits[(kept.users == user) & (kept.items == item)].tolist() == [0]


def test_cold_start_users_are_left_out_and_counted(tmp_path):
    source = write_source(tmp_path / "source")
    rows = [row for row in read_inter(source) if not (row[0] == 4 and row[2] == 0)]
    write_inter(source, rows)
    notes = import_mmrec(source, tmp_path / "out", ENCODERS)
    assert (notes["cold_start_users"], notes["cold_start_interactions_dropped"]) == (1, 2)
    assert 4 not in Catalog(tmp_path / "out").interactions().users


def test_timestamps_may_be_floats_or_absent(tmp_path):
    source = write_source(tmp_path / "source")
    text = (source / "shop.inter").read_text().splitlines()
    (source / "shop.inter").write_text("\n".join([text[0], *(line.replace("00\t", "00.5\t") for line in text[1:])]))
    import_mmrec(source, tmp_path / "float", ENCODERS)
    without = [(line.split("\t")[0], line.split("\t")[1], line.split("\t")[3]) for line in text]
    (source / "shop.inter").write_text("\n".join("\t".join(cells) for cells in without))
    import_mmrec(source, tmp_path / "absent", ENCODERS)


def spoil_features(file, change):
    def spoil(source):
        matrix = np.load(source / file)
        np.save(source / file, change(matrix))

    return spoil


def spoil_inter(change):
    def spoil(source):
        write_inter(source, change(read_inter(source)))

    return spoil


def nan_at_row_2(matrix):
    matrix[2, 1] = np.nan
    return matrix


def inf_at_row_5(matrix):
    matrix[5, 0] = np.inf
    return matrix


def header(text):
    return lambda source: write_inter(source, read_inter(source), text)


def truncate(file, size):
    return lambda source: (source / file).write_bytes((source / file).read_bytes()[:size])


REFUSED = {
    "missing column": (header("userID\titemID\ttimestamp\tlabel"), ["shop.inter", "x_label", "missing"]),
    "no header": (header("0\t1\t0\t0"), ["shop.inter", "userID", "missing"]),
    "wrong label": (spoil_inter(lambda rows: [*rows, (0, 1, 7)]), ["shop.inter", "row ", "x_label", "7"]),
    "text in a number": (spoil_inter(lambda rows: [("A9", 1, 0), *rows]), ["shop.inter", "row 1", "userID", "'A9'"]),
    "empty cell": (spoil_inter(lambda rows: [(0, "", 0), *rows]), ["shop.inter", "row 1", "itemID"]),
    "fraction": (spoil_inter(lambda rows: [(0, 1.5, 0), *rows]), ["shop.inter", "row 1", "itemID", "1.5"]),
    "beyond int64": (spoil_inter(lambda rows: [(2**63 + 5, 1, 0), *rows]), ["row 1", "userID", "below 2^63"]),
    "negative id": (spoil_inter(lambda rows: [(-1, 1, 0), *rows]), ["row 1", "userID", "-1", "negative"]),
    "item beyond the features": (spoil_inter(lambda rows: [(0, 9, 0), *rows]), ["row 1", "itemID 9", "out of range"]),
    "gap in the users": (spoil_inter(lambda rows: [*rows, (20, 1, 0)]), ["userID", "not contiguous", "12", "renumber"]),
    "gap in the items": (spoil_inter(lambda rows: [r for r in rows if r[1] != 3]), ["itemID", "not contiguous", "3"]),
    "last item unused": (spoil_inter(lambda rows: [r for r in rows if r[1] != 8]), ["8 items", "9 rows"]),
    "empty valid split": (spoil_inter(lambda rows: [r for r in rows if r[2] != 1]), ["shop.inter", "valid", "empty"]),
    "no rows": (spoil_inter(lambda rows: []), ["shop.inter", "no interactions"]),
    "ragged": (truncate("shop.inter", 95), ["shop.inter"]),
    "NaN": (spoil_features("image_feat.npy", nan_at_row_2), ["image_feat.npy", "row 2", "NaN"]),
    "Inf": (spoil_features("text_feat.npy", inf_at_row_5), ["text_feat.npy", "row 5", "Inf"]),
    "row counts": (spoil_features("text_feat.npy", lambda m: m[:-1]), ["text_feat.npy", "8 rows", "9"]),
    "vector": (spoil_features("text_feat.npy", lambda m: m[:, 0]), ["text_feat.npy", "shape"]),
    "integers": (spoil_features("image_feat.npy", lambda m: m.astype(int)), ["image_feat.npy", "int64"]),
    "truncated features": (truncate("image_feat.npy", 200), ["image_feat.npy", "truncated"]),
    "empty file": (truncate("image_feat.npy", 0), ["image_feat.npy", "truncated"]),
    "no features": (lambda source: [file.unlink() for file in source.glob("*.npy")], ["neither image_feat.npy nor"]),
    "no .inter": (lambda source: (source / "shop.inter").unlink(), ["no .inter file"]),
    "two .inter": (lambda source: (source / "b.inter").write_text(""), ["b.inter", "keep one"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_and_leaves_no_catalog(tmp_path, case):
    spoil, expected = REFUSED[case]
    source = write_source(tmp_path / "source")
    spoil(source)
    with pytest.raises(UserError) as error:
        import_mmrec(source, tmp_path / "out", ENCODERS)
    message = str(error.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message
    with pytest.raises(UserError, match="no catalog"):
        Catalog(tmp_path / "out")


@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0.0, 0.999), file=st.sampled_from(["shop.inter", "image_feat.npy", "text_feat.npy"]))
def test_a_truncated_file_never_ends_in_a_traceback(tmp_path_factory, cut, file):
    folder = tmp_path_factory.mktemp("cut")
    source = write_source(folder / "source")
    whole = (source / file).read_bytes()
    (source / file).write_bytes(whole[: int(len(whole) * cut)])
    try:
        import_mmrec(source, folder / "out", ENCODERS)
    except UserError:
        return
    # A TSV that is cut between two rows, or inside the last number, is a smaller data set.
    assert file == "shop.inter"


EXPORTED = {
    "shop.inter": b"userID\titemID\ttimestamp\tx_label\n0\t0\t7\t0\n0\t1\t9\t1\n0\t2\t9\t2\n1\t1\t5\t0\n",
    "item_text.csv": b'itemID,source_id,title\n0,"A","one, two"\n1,"B","in ""quotes"""\n2,"D",""\n',
}


def test_export_to_the_byte(tmp_path):
    """User 1 and item C have no interaction: the convention knows no gaps."""
    writer = CatalogWriter(tmp_path / "catalog", "shop", 3, 4)
    rows = np.arange(8, dtype=np.float16).reshape(4, 2)
    with writer.features("text", 2, rows.dtype, "hand", "rows") as features:
        features.write(rows[:3])
        features.write(rows[3:])
    columns = ([2, 0, 0, 0], [1, 3, 0, 1], [5, 9, 7, 9], [0, 2, 0, 1])
    writer.interactions(Interactions(*(np.array(column) for column in columns)))
    writer.finish(["A", "B", "C", "D"], ["one, two", 'in "quotes"', "never", ""], {})
    written = export_mmrec(Catalog(tmp_path / "catalog"), tmp_path / "out")
    assert [path.name for path in written] == ["shop.inter", "item_text.csv", "text_feat.npy"]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in EXPORTED} == EXPORTED
    matrix = np.load(tmp_path / "out/text_feat.npy")
    assert matrix.dtype == np.float16
    np.testing.assert_array_equal(matrix, rows[[0, 1, 3]])


def test_what_is_exported_is_imported_again(tmp_path):
    source = write_source(tmp_path / "source")
    import_mmrec(source, tmp_path / "a", ENCODERS)
    a = Catalog(tmp_path / "a")
    export_mmrec(a, tmp_path / "exported")
    import_mmrec(tmp_path / "exported", tmp_path / "b", ENCODERS)
    b = Catalog(tmp_path / "b")
    rows_a, rows_b = ((c.interactions().users, c.interactions().items, c.interactions().splits) for c in (a, b))
    assert set(zip(*rows_a, strict=True)) == set(zip(*rows_b, strict=True)) and a.name == b.name
    for modality in a.modalities:
        ids = np.arange(a.num_items)
        np.testing.assert_array_equal(a.features[modality].rows(ids), b.features[modality].rows(ids))
