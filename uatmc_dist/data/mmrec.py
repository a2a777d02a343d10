"""Data sets in the MMRec convention, both ways (also used by BM3, FREEDOM and the UAT-MC paper).

NAME.inter        TSV with userID, itemID, x_label (0 train, 1 valid, 2 test), optionally timestamp
image_feat.npy    one row an item          text_feat.npy    one row an item; one of them is enough
item_text.csv     optional: itemID with title and source_id
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from uatmc_dist.data.catalog import SPLITS, Catalog, Interactions
from uatmc_dist.data.catalog_writer import CatalogWriter, block_rows
from uatmc_dist.errors import UserError

FEATURE_FILES = {"visual": "image_feat.npy", "text": "text_feat.npy"}


def import_mmrec(source: Path, out: Path, encoders: dict[str, str], overwrite: bool = False) -> dict[str, int]:
    """Imports `source` into a catalog at `out`; returns the counts worth telling.

    `encoders` names what made each modality's features. Users of valid/test that have no training
    interaction are left out, as the convention does; repeated interactions are kept once. Both are counted.
    Raises UserError naming file, row or key, what is wrong and the mend.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the folder that holds NAME.inter and the .npy files")
    features = {
        modality: _open_npy(source / file) for modality, file in FEATURE_FILES.items() if (source / file).exists()
    }
    if not features:
        raise UserError(f"{source}: neither {' nor '.join(FEATURE_FILES.values())}; give one feature row an item")
    inter = _find_inter(source)
    interactions = _read_inter(inter)
    num_items = len(next(iter(features.values())))
    if len(features) > 1 and len(features["text"]) != num_items:
        raise UserError(
            f"{source / FEATURE_FILES['text']}: {len(features['text'])} rows, but "
            f"{FEATURE_FILES['visual']} has {num_items}; both need one row an item"
        )
    num_users = _check_ids(inter, "userID", interactions.users, None)
    _check_ids(inter, "itemID", interactions.items, num_items)
    interactions, num_duplicates = _without_duplicates(interactions)
    interactions, num_cold, num_cold_users = _without_cold_users(interactions, num_users)
    for index, name in enumerate(SPLITS):
        if not (interactions.splits == index).any():
            raise UserError(f"{inter}: the {name} split is empty; give rows with x_label {index}")
    source_ids, titles = _read_titles(source / "item_text.csv", num_items)

    writer = CatalogWriter(out, inter.stem, num_users, num_items, overwrite)
    for modality, matrix in features.items():
        file = str(source / FEATURE_FILES[modality])
        step = block_rows(matrix.shape[1], matrix.dtype)
        with writer.features(modality, matrix.shape[1], matrix.dtype, encoders[modality], file) as feature_writer:
            for start in range(0, num_items, step):
                feature_writer.write(matrix[start : start + step])
    notes = {
        "duplicated_interactions_dropped": num_duplicates,
        "cold_start_interactions_dropped": num_cold,
        "cold_start_users": num_cold_users,
    }
    writer.interactions(interactions)
    writer.finish(source_ids, titles, notes)
    return notes


def export_mmrec(catalog: Catalog, out: Path) -> list[Path]:
    """Writes NAME.inter, the .npy files and item_text.csv; returns their paths. Users and items without any interaction
    are left out, the others renumbered: the convention knows no gaps. Raises UserError where it cannot be written."""
    interactions = catalog.interactions()
    users, items = np.unique(interactions.users), np.unique(interactions.items)
    source_ids, titles = catalog.titles()
    columns = {
        "userID": np.searchsorted(users, interactions.users),
        "itemID": np.searchsorted(items, interactions.items),
        "timestamp": interactions.timestamps,
        "x_label": interactions.splits.astype(np.int64),
    }
    order = np.lexsort((columns["timestamp"], columns["x_label"], columns["userID"]))
    inter, texts = out / f"{catalog.name}.inter", out / "item_text.csv"
    written = [inter, texts]
    try:
        out.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: column[order] for name, column in columns.items()})
        pv.write_csv(table, inter, pv.WriteOptions(delimiter="\t", quoting_header="none"))
        described = pa.table(
            {
                "itemID": np.arange(len(items)),
                "source_id": [source_ids[item] for item in items],
                "title": [titles[item] for item in items],
            }
        )
        pv.write_csv(described, texts, pv.WriteOptions(quoting_header="none"))
        for modality in catalog.modalities:
            file = out / FEATURE_FILES[modality]
            features = catalog.features[modality]
            matrix = np.lib.format.open_memmap(file, "w+", features.dtype, (len(items), features.width))
            step = block_rows(features.width, features.dtype)
            for start in range(0, len(items), step):
                matrix[start : start + step] = features.rows(items[start : start + step])
            matrix.flush()
            features.release()
            written.append(file)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder") from None
    return written


def _open_npy(path: Path) -> np.ndarray:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: truncated or not a .npy file ({str(error).splitlines()[0]}); write it again"
        ) from None
    if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] == 0:
        raise UserError(f"{path}: shape {matrix.shape}; a matrix with one row an item is needed")
    if matrix.dtype.kind != "f":
        raise UserError(f"{path}: dtype {matrix.dtype}; float16 or float32 is needed")
    return matrix


def _find_inter(source: Path) -> Path:
    found = sorted(source.glob("*.inter"))
    if not found:
        raise UserError(f"{source}: no .inter file; give a TSV NAME.inter with userID, itemID and x_label")
    if len(found) > 1:
        raise UserError(f"{source}: several .inter files ({', '.join(file.name for file in found)}); keep one")
    return found[0]


def _read_inter(path: Path) -> Interactions:
    try:
        # Everything as text first: a bad cell can then be named by its row.
        header = pv.open_csv(path, parse_options=pv.ParseOptions(delimiter="\t")).schema.names
        as_text = pv.ConvertOptions(column_types={name: pa.string() for name in header}, strings_can_be_null=False)
        table = pv.read_csv(path, parse_options=pv.ParseOptions(delimiter="\t"), convert_options=as_text)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: truncated or not a TSV ({str(error).splitlines()[0]}); write it again") from None
    for column in ("userID", "itemID", "x_label"):
        if column not in header:
            raise UserError(f"{path}: column {column} is missing (found: {', '.join(header)}); add it to the header")
    if table.num_rows == 0:
        raise UserError(f"{path}: no interactions; give one row a user and item")
    labels = _numbers(path, "x_label", table["x_label"])
    wrong = (labels < 0) | (labels >= len(SPLITS))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{path}: row {row + 1}: x_label is {labels[row]}; 0 (train), 1 (valid) or 2 (test) is needed")
    if "timestamp" in header:
        timestamps = _numbers(path, "timestamp", table["timestamp"])
    else:
        timestamps = np.zeros(table.num_rows, dtype=np.int64)
    users, items = (_numbers(path, column, table[column]) for column in ("userID", "itemID"))
    return Interactions(users, items, timestamps, labels.astype(np.int8))


def _numbers(path: Path, column: str, text: pa.ChunkedArray) -> np.ndarray:
    """int64 of a text column; whole numbers written as floats (1537401600.0) are fine."""
    text = pc.utf8_trim_whitespace(text)
    try:
        return pc.cast(text, pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        pass
    is_number = pc.match_substring_regex(text, r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$").to_numpy()
    if is_number.all():
        values = pc.cast(text, pa.float64()).to_numpy()
        is_number = ((values == np.floor(values)) | (column == "timestamp")) & (np.abs(values) < 2.0**63)
        if is_number.all():
            return values.astype(np.int64)
    row = int(np.argmin(is_number))
    raise UserError(f"{path}: row {row + 1}: {column} is {text[row].as_py()!r}; a whole number below 2^63 is needed")


def _check_ids(path: Path, column: str, ids: np.ndarray, count: int | None) -> int:
    """Ids must be exactly 0..count-1, each used; returns the count."""
    negative = ids < 0
    if negative.any():
        row = int(np.argmax(negative))
        raise UserError(f"{path}: row {row + 1}: {column} {ids[row]} is negative; number from 0")
    if count is not None and (beyond := ids >= count).any():
        row = int(np.argmax(beyond))
        raise UserError(
            f"{path}: row {row + 1}: {column} {ids[row]} is out of range, the feature files have {count} rows; "
            "give every item a feature row"
        )
    distinct = np.unique(ids)
    if distinct[-1] != len(distinct) - 1:
        missing = int(np.argmax(distinct != np.arange(len(distinct))))
        raise UserError(
            f"{path}: {column} is not contiguous, {missing} never occurs but {distinct[-1]} does; "
            f"renumber to 0..{len(distinct) - 1}"
        )
    if count is not None and len(distinct) != count:
        raise UserError(
            f"{path}: {len(distinct)} items, but the feature files have {count} rows; give one feature row an item"
        )
    return len(distinct)


def _without_duplicates(interactions: Interactions) -> tuple[Interactions, int]:
    """Keeps the first of repeated (user, item) pairs, those of earlier splits first, in the given order."""
    order = np.argsort(interactions.splits, kind="stable")
    pairs = np.stack([interactions.users[order], interactions.items[order]], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return _chosen(interactions, np.sort(order[first])), len(interactions) - len(first)


def _without_cold_users(interactions: Interactions, num_users: int) -> tuple[Interactions, int, int]:
    warm = np.zeros(num_users, dtype=bool)
    warm[interactions.users[interactions.splits == 0]] = True
    kept = warm[interactions.users]
    return _chosen(interactions, np.flatnonzero(kept)), int((~kept).sum()), len(np.unique(interactions.users[~kept]))


def _chosen(interactions: Interactions, index: np.ndarray) -> Interactions:
    return Interactions(
        interactions.users[index], interactions.items[index], interactions.timestamps[index], interactions.splits[index]
    )


def _read_titles(path: Path, num_items: int) -> tuple[list[str], list[str]]:
    source_ids, titles = [str(item) for item in range(num_items)], [""] * num_items
    if not path.exists():
        return source_ids, titles
    try:
        options = pv.ParseOptions(newlines_in_values=True)
        names = pv.open_csv(path, parse_options=options).schema.names
        text = pv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
        table = pv.read_csv(path, parse_options=options, convert_options=text)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: truncated or not a CSV ({str(error).splitlines()[0]}); mend or remove it") from None
    if "itemID" not in table.column_names:
        raise UserError(f"{path}: column itemID is missing (found: {', '.join(table.column_names)}); mend or remove it")
    for column, into in (("source_id", source_ids), ("title", titles)):
        if column not in table.column_names:
            continue
        for row, (item, value) in enumerate(zip(_numbers(path, "itemID", table["itemID"]), table[column], strict=True)):
            if not 0 <= item < num_items:
                raise UserError(f"{path}: row {row + 1}: itemID {item} is out of range; {num_items} items are known")
            into[item] = value.as_py()
    return source_ids, titles
