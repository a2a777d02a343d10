"""From a shop's own files to a catalog: orders, articles, a folder of photos.

All that can be wrong with the tables is found before the first photo is encoded. What was encoded is kept in
OUT/encoded, also when the build is interrupted or done again.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uatmc_dist.data import splits
from uatmc_dist.data.catalog import SPLITS, CatalogWriter, Interactions, refuse_to_replace
from uatmc_dist.data.source import Source, numbers, parse_date, read_source, timestamps
from uatmc_dist.errors import UserError

USER = ("userid", "user", "customerid", "customer", "reviewerid", "clientid", "visitorid", "buyerid")
ITEM = ("itemid", "item", "articleid", "article", "asin", "parentasin", "productid", "product", "sku", "id")
TIME = ("timestamp", "time", "tdat", "date", "datetime", "eventtime", "orderdate", "createdat", "unixreviewtime")
RATING = ("rating", "stars", "overall", "score")
SPLIT = ("split", "xlabel")
TITLE = ("title", "name", "prodname", "productname", "itemname")
SOURCE_ID = ("sourceid",)
PHOTO = ("photo", "photopath", "image", "imagepath", "imagefile", "imagefilename", "picture", "img")
WHOLE_TEXT = ("text",)
TEXTS = (
    *TITLE,
    *("brand", "category", "categories", "producttype", "producttypename", "colour", "color", "colourgroupname"),
    *("department", "departmentname", "section", "sectionname", "features", "description", "detaildesc"),
)
_SPLIT_NAMES = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
_NAMED = 10
DEFAULT_CORE = 5

Shown = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class BuildOptions:
    """Columns are guessed where they are None."""

    interactions: Path
    items: Path | None = None
    photos: Path | None = None
    name: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    rating_column: str | None = None
    min_rating: float | None = None
    id_column: str | None = None
    title_column: str | None = None
    text_columns: Sequence[str] = ()
    photo_column: str | None = None
    k_core: int | None = None
    """DEFAULT_CORE where None, and 1 where the split is given."""
    split: splits.SplitRule | None = None
    """chronological where there are timestamps, else random."""
    split_column: str | None = None
    valid_from: str | None = None
    test_from: str | None = None
    seed: int = 0
    visual_encoder: str = "efficientnet-lite0"
    text_encoder: str = "all-MiniLM-L6-v2"
    device: str = "auto"
    cache: Path | None = None


@dataclass
class _Articles:
    """Items in the order of their table; lists are parallel."""

    ids: pa.Array
    source_ids: pa.Array
    titles: list[str]
    texts: list[str] | None = None
    photos: list[str | None] | None = None
    """Paths below the folder."""
    notes: dict[str, int] = field(default_factory=dict)


def build_catalog(
    out: Path,
    options: BuildOptions,
    overwrite: bool = False,
    shown: Shown | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes a catalog at `out`. `shown(what)` gives a progress callback, `say` is told what was found.

    Raises UserError naming file, row, column or option, what is wrong and the mend."""
    refuse_to_replace(out, overwrite)
    _check(options)
    orders = read_source(options.interactions)
    articles = _read_articles(options, orders, say)
    interactions, user_ids, kept_items, notes = _read_interactions(options, orders, articles, say)
    chosen = _chosen(articles, kept_items)
    notes |= chosen.notes
    encoded = _encoded(out, options, chosen, notes, shown, say)

    writer = CatalogWriter(out, options.name or out.resolve().name, len(user_ids), len(chosen.titles), overwrite)
    for modality, (rows, record) in encoded.items():
        writer.encoded(modality, rows, record)
    writer.interactions(interactions)
    writer.finish(
        chosen.source_ids.to_pylist(),
        chosen.titles,
        notes,
        user_ids=user_ids,
        contents=_contents(options, chosen, encoded),
    )


def _check(options: BuildOptions) -> None:
    if options.split is not None and options.split not in get_args(splits.SplitRule):
        raise UserError(f"--split {options.split}: one of {', '.join(get_args(splits.SplitRule))} is needed")
    if options.k_core is not None and options.k_core < 1:
        raise UserError(f"--k-core {options.k_core}: at least 1 is needed, which leaves nothing out")
    if options.split == "date" and (options.valid_from is None or options.test_from is None):
        raise UserError("--split date: give --valid-from and --test-from, as 2026-01-31")
    if options.split != "date" and (options.valid_from or options.test_from):
        raise UserError("--valid-from, --test-from: for --split date alone")


def _read_articles(options: BuildOptions, orders: Source, say: Callable[[str], None]) -> _Articles:
    if options.items is None:
        if options.photos is None:
            raise UserError("neither --items nor --photos: a catalog needs texts, photos or both")
        column = orders.column(options.item_column, ITEM, "items", "--item-column")
        ids = pc.unique(orders.ids(column))
        articles = _Articles(ids, ids, [""] * len(ids))
        articles.photos = _find_photos(options.photos, ids, [("", ids)], say)
        return articles
    table = read_source(options.items)
    id_column = table.column(options.id_column, ITEM, "the items' ids", "--id-column")
    ids = table.ids(id_column)
    counted = pc.value_counts(ids)
    if len(counted) < len(ids):
        twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")[0]
        rows = np.flatnonzero(pc.equal(ids, twice).to_numpy(zero_copy_only=False))[:2] + 1
        raise UserError(
            f"{table.path}: {id_column} {twice.as_py()} is in rows {rows[0]} and {rows[1]}; give each item one row"
        )
    source_column = table.optional_column(None, SOURCE_ID, "") or id_column
    title_column = table.optional_column(options.title_column, TITLE, "--title-column")
    articles = _Articles(ids, table.ids(source_column), _filled(table, title_column))
    columns = _text_columns(table, options)
    if columns:
        parts = [_filled(table, column) for column in columns]
        articles.texts = [". ".join(part for part in row if part) for row in zip(*parts, strict=True)]
    photo_column = table.optional_column(options.photo_column, PHOTO, "--photo-column")
    if options.photos is not None or options.photo_column is not None:
        folder = options.photos or table.path.parent
        candidates = [(id_column, ids), (source_column, articles.source_ids)]
        if photo_column is not None:
            candidates = [(photo_column, table.text(photo_column))]
        articles.photos = _find_photos(folder, ids, candidates, say)
    told = [f"items: {id_column}", f"title: {title_column or 'none'}", f"text: {' + '.join(columns) or 'none'}"]
    say(f"{table.path}: {', '.join(told)}")
    if articles.texts is None and articles.photos is None:
        raise UserError(
            f"{table.path}: no column of texts (found: {', '.join(table.columns)}) and no --photos; name texts with "
            "--text-columns"
        )
    return articles


def _text_columns(table: Source, options: BuildOptions) -> list[str]:
    if options.text_columns:
        return [name for given in options.text_columns if (name := table.optional_column(given, (), "--text-columns"))]
    whole = table.optional_column(None, WHOLE_TEXT, "")
    if whole is not None:
        return [whole]
    found = (table.optional_column(None, (guess,), "") for guess in TEXTS)
    return list(dict.fromkeys(name for name in found if name is not None))


def _filled(table: Source, column: str | None) -> list[str]:
    return [""] * len(table) if column is None else pc.fill_null(table.text(column), "").to_pylist()


def _find_photos(
    folder: Path, ids: pa.Array, candidates: Sequence[tuple[str, pa.Array]], say: Callable[[str], None]
) -> list[str | None]:
    """The photo of each item, by the first column of `candidates` that knows any."""
    from uatmc_dist.encoders.photos import PhotoFolder

    photos = PhotoFolder(folder)
    for _, names in candidates:
        found = [None if name is None else photos.find(name) for name in names.to_pylist()]
        count = sum(path is not None for path in found)
        if count:
            without = len(photos) - len({path for path in found if path is not None})
            say(f"{folder}: photos of {count:,} of {len(ids):,} items; {without:,} photos belong to none of them")
            return found
    raise UserError(
        f"{folder}: none of its {len(photos):,} photos has the name of an item, such as {ids[0].as_py()}; name them by "
        "the items' ids, or give a column of their paths with --photo-column"
    )


@dataclass
class _Orders:
    """Parallel arrays, one entry an interaction; users and items by index."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    labels: np.ndarray
    """Index into SPLITS; zero until there is a split."""
    notes: dict[str, int] = field(default_factory=dict)

    def keep(self, mask: np.ndarray, note: str) -> None:
        """Leaves the others out, and counts them."""
        if not mask.all():
            self.notes[note] = int((~mask).sum())
        for name in ("users", "items", "times", "labels"):
            setattr(self, name, getattr(self, name)[mask])


def _read_interactions(
    options: BuildOptions, source: Source, articles: _Articles, say: Callable[[str], None]
) -> tuple[Interactions, list[str], np.ndarray, dict[str, int]]:
    """(interactions, source ids of the users, indices of the kept items, counts worth telling)."""
    orders, user_names, rule = _read_orders(options, source, articles, say)
    orders.keep(_first_of_pairs(orders, len(articles.ids)), "repeated_interactions")
    # A split that was given is not to be thinned out, unless it is asked for.
    k = options.k_core or (1 if rule == "column" else DEFAULT_CORE)
    in_core = splits.k_core(orders.users, orders.items, k)
    if not in_core.any():
        raise UserError(
            f"{source.path}: nothing is left with --k-core {k} (users and items with fewer interactions are left out, "
            "again and again); take a smaller one"
        )
    orders.keep(in_core, "interactions_outside_the_core")
    if rule != "column":
        orders.labels = _split(options, rule, orders.users, orders.times)
    warm = np.isin(orders.users, orders.users[orders.labels == 0])
    orders.keep(warm, "cold_start_interactions_dropped")
    for part, name in enumerate(SPLITS):
        if not (orders.labels == part).any():
            raise UserError(f"{source.path}: the {name} split is empty with --split {rule}; choose another split")
    user_ids, users = np.unique(orders.users, return_inverse=True)
    item_ids, items = np.unique(orders.items, return_inverse=True)
    if len(item_ids) < len(articles.ids):
        orders.notes["items_without_interactions_dropped"] = len(articles.ids) - len(item_ids)
    order = np.lexsort((orders.times, users))
    interactions = Interactions(users[order], items[order], orders.times[order], orders.labels[order])
    return interactions, user_names.take(pa.array(user_ids)).to_pylist(), item_ids, orders.notes


def _read_orders(
    options: BuildOptions, source: Source, articles: _Articles, say: Callable[[str], None]
) -> tuple[_Orders, pa.Array, splits.SplitRule]:
    """(interactions with known items and good ratings, names of the users, how to split)."""
    user_column = source.column(options.user_column, USER, "users", "--user-column")
    item_column = source.column(options.item_column, ITEM, "items", "--item-column")
    time_column = source.optional_column(options.time_column, TIME, "--time-column")
    rule, split_column = _rule(options, source, time_column)
    told = [f"users: {user_column}", f"items: {item_column}", f"times: {time_column or 'none'}", f"split: {rule}"]
    say(f"{source.path}: {', '.join(told)}")
    item_text, user_names = source.ids(item_column), pc.dictionary_encode(source.ids(user_column))
    index = pc.index_in(item_text, articles.ids)
    zeros = np.zeros(len(source), dtype=np.int64)
    orders = _Orders(
        user_names.indices.to_numpy().astype(np.int64),
        pc.fill_null(index, 0).to_numpy().astype(np.int64),
        zeros if time_column is None else timestamps(source, time_column),
        zeros.astype(np.int8) if split_column is None else _labels(source, split_column),
    )
    known = index.is_valid().to_numpy(zero_copy_only=False)
    if not known.any():
        raise UserError(_no_common_id(source.path, item_text, articles.ids))
    if options.min_rating is not None:
        rating_column = source.column(options.rating_column, RATING, "ratings", "--rating-column")
        good = numbers(source, rating_column) >= options.min_rating
        orders.keep(good, "interactions_below_min_rating")
        known = known[good]
    orders.keep(known, "interactions_of_unknown_items")
    return orders, user_names.dictionary, rule


def _rule(options: BuildOptions, source: Source, time_column: str | None) -> tuple[splits.SplitRule, str | None]:
    """(how to split, the column that says it if one does)."""
    split_column = source.optional_column(options.split_column, SPLIT, "--split-column")
    rule = options.split
    if rule is None and split_column is not None:
        rule = "column"
    rule = rule or ("chronological" if time_column is not None else "random")
    if rule in ("chronological", "leave-one-out", "date") and time_column is None:
        raise UserError(
            f"{source.path}: --split {rule} needs a column of times (found: {', '.join(source.columns)}); name it with "
            "--time-column, or take --split random"
        )
    if rule == "column" and split_column is None:
        raise UserError(f"{source.path}: --split column: no column for the split; name it with --split-column")
    return rule, split_column if rule == "column" else None


def _split(options: BuildOptions, rule: splits.SplitRule, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    if rule == "date":
        assert options.valid_from is not None and options.test_from is not None
        valid_from, test_from = (
            parse_date(text, option)
            for text, option in ((options.valid_from, "--valid-from"), (options.test_from, "--test-from"))
        )
        if valid_from >= test_from:
            raise UserError(f"--valid-from {options.valid_from}: not before --test-from {options.test_from}")
        return splits.by_date(times, valid_from, test_from)
    key = np.random.default_rng(options.seed).random(len(users)) if rule == "random" else times
    rank, degree = splits.ranks_within_users(users, key)
    return splits.leave_one_out(rank, degree) if rule == "leave-one-out" else splits.held_out_by_field(rank, degree)


def _labels(source: Source, column: str) -> np.ndarray:
    text = pc.utf8_lower(source.ids(column))
    known = {**_SPLIT_NAMES, **{str(part): part for part in range(len(SPLITS))}}
    index = pc.index_in(text, pa.array(list(known)))
    if index.null_count:
        row = int(np.argmax(index.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(
            f"{source.path}: row {row + 1}: {column} is {text[row].as_py()!r}; train, valid or test is needed"
        )
    return np.array(list(known.values()), dtype=np.int8)[index.to_numpy()]


def _first_of_pairs(orders: _Orders, num_items: int) -> np.ndarray:
    """Mask of the first of each (user, item): of the earliest split where it is given, then the earliest."""
    order = np.lexsort((np.arange(len(orders.users)), orders.times, orders.labels))
    _, first = np.unique((orders.users * num_items + orders.items)[order], return_index=True)
    mask = np.zeros(len(order), dtype=bool)
    mask[order[first]] = True
    return mask


def _no_common_id(path: Path, item_text: pa.Array, ids: pa.Array) -> str:
    bought, there = item_text[0].as_py(), ids[0].as_py()
    example = f"here such as {bought}, there {there}"
    if bought.lstrip("0") in set(pc.utf8_ltrim(ids, "0").to_pylist()):
        return (
            f"{path}: ids lost their leading zeros here or in the table of items ({example}); write ids as text in both"
        )
    return f"{path}: no item is in the table of items ({example}); name the columns of ids: --item-column, --id-column"


def _chosen(articles: _Articles, index: np.ndarray) -> _Articles:
    """The items that are kept."""
    take = lambda entries: None if entries is None else [entries[item] for item in index]  # noqa: E731
    rows = pa.array(index)
    chosen = _Articles(
        articles.ids.take(rows),
        articles.source_ids.take(rows),
        [articles.titles[item] for item in index],
        take(articles.texts),
        take(articles.photos),
    )
    if chosen.texts is not None:
        chosen.notes["items_without_text"] = sum(not text for text in chosen.texts)
    if chosen.photos is not None:
        chosen.notes["items_without_photo"] = sum(path is None for path in chosen.photos)
    chosen.notes = {name: count for name, count in chosen.notes.items() if count}
    return chosen


def _encoded(
    out: Path,
    options: BuildOptions,
    articles: _Articles,
    notes: dict[str, int],
    shown: Shown | None,
    say: Callable[[str], None],
) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """float16 features [N, width] and the encoder's record, by modality; zero rows where there is nothing to encode."""
    from uatmc_dist.encoders.cache import EncodedContent, content_hash, encode_contents
    from uatmc_dist.encoders.photos import open_photo
    from uatmc_dist.encoders.text import open_text_encoder
    from uatmc_dist.encoders.visual import open_visual_encoder

    cache = options.cache or out / "encoded"
    encoded: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}

    def run(
        modality: str, encoder: Any, places: list[int], keys: list[str], load: Callable[[int], Any]
    ) -> dict[int, str]:
        kept = EncodedContent(cache, modality, encoder.record)
        with (shown or _silent)("photos" if modality == "visual" else "texts") as progress:
            found, broken = encode_contents(encoder, kept, keys, load, progress)
        kept.close()
        if not found:
            raise UserError(f"none of the {len(keys):,} {'photos' if modality == 'visual' else 'texts'} can be encoded")
        rows = np.zeros((len(articles.titles), len(next(iter(found.values())))), dtype=np.float16)
        for place, key in zip(places, keys, strict=True):
            if key in found:
                rows[place] = found[key]
        encoded[modality] = rows, {**encoder.record, "width": rows.shape[1]}
        return broken

    if articles.photos is not None:
        folder = options.photos or _parent_of_items(options)
        places = [place for place, path in enumerate(articles.photos) if path is not None]
        files = [folder / str(articles.photos[place]) for place in places]
        keys = [content_hash(file.read_bytes()) for file in files]
        encoder = open_visual_encoder(options.visual_encoder, options.device)
        broken = run("visual", encoder, places, keys, lambda index: open_photo(files[index]))
        for index, why in list(broken.items())[:_NAMED]:
            say(f"broken photo, a row of zeros instead: {files[index]}: {why}")
        if len(broken) > _NAMED:
            say(f"... and {len(broken) - _NAMED:,} more broken photos")
        if broken:
            notes["broken_photos"] = len(broken)
    if articles.texts is not None:
        texts = articles.texts
        places = [place for place, text in enumerate(texts) if text]
        if not places:
            raise UserError(f"{options.items}: all texts are empty; choose others with --text-columns")
        keys = [content_hash(texts[place].encode()) for place in places]
        run("text", open_text_encoder(options.text_encoder, options.device), places, keys, lambda i: texts[places[i]])
    return encoded


def _parent_of_items(options: BuildOptions) -> Path:
    assert options.items is not None
    return options.items.parent


def _silent(what: str) -> AbstractContextManager[Callable[[int, int], None]]:
    from contextlib import nullcontext

    return nullcontext(lambda done, total: None)


def _contents(
    options: BuildOptions, articles: _Articles, encoded: dict[str, tuple[np.ndarray, dict[str, Any]]]
) -> dict[str, list[str | None]]:
    """Columns of items.parquet beyond ids and titles: what an attack on photos and texts starts from."""
    from uatmc_dist.encoders.cache import content_hash

    columns: dict[str, list[str | None]] = {}
    if articles.texts is not None:
        columns["text"] = list(articles.texts)
    if articles.photos is not None:
        folder = (options.photos or _parent_of_items(options)).resolve()
        files = [None if path is None else folder / path for path in articles.photos]
        columns["photo"] = [None if file is None else str(file) for file in files]
        columns["photo_xxh3"] = [None if file is None else content_hash(file.read_bytes()) for file in files]
    return columns
