"""The items of a catalog: their ids, titles, texts and photos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uatmc_dist.data.building.options import ITEM, PHOTO, SOURCE_ID, TEXTS, TITLE, WHOLE_TEXT, BuildOptions
from uatmc_dist.data.source import Source, read_source
from uatmc_dist.errors import UserError


@dataclass
class Articles:
    """Items in the order of their table; lists are parallel."""

    ids: pa.Array
    source_ids: pa.Array
    titles: list[str]
    texts: list[str] | None = None
    photos: list[str | None] | None = None
    """Paths below the folder."""
    notes: dict[str, int] = field(default_factory=dict)
    """Counts worth telling."""

    def chosen(self, index: np.ndarray) -> "Articles":
        """Some of the items, and how many of them have no text or no photo."""
        take = lambda entries: None if entries is None else [entries[item] for item in index]  # noqa: E731
        rows, texts, photos = pa.array(index), take(self.texts), take(self.photos)
        counts = {
            "items_without_text": sum(not text for text in texts or ()),
            "items_without_photo": sum(path is None for path in photos or ()),
        }
        notes = {name: count for name, count in counts.items() if count}
        titles = [self.titles[item] for item in index]
        return Articles(self.ids.take(rows), self.source_ids.take(rows), titles, texts, photos, notes)


def read_articles(options: BuildOptions, orders: Source, say: Callable[[str], None]) -> Articles:
    if options.items is None:
        if options.photos is None:
            raise UserError("neither --items nor --photos: a catalog needs texts, photos or both")
        column = orders.column(options.item_column, ITEM, "items", "--item-column")
        ids = pc.unique(orders.ids(column))
        articles = Articles(ids, ids, [""] * len(ids))
        articles.photos = _find_photos(options, [ids], say)
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
    articles = Articles(ids, table.ids(source_column), _filled(table, title_column))
    columns = _text_columns(table, options)
    if columns:
        parts = [_filled(table, column) for column in columns]
        articles.texts = [". ".join(part for part in row if part) for row in zip(*parts, strict=True)]
    if options.photos is not None or options.photo_column is not None:
        by_path = table.optional_column(options.photo_column, PHOTO, "--photo-column")
        names = [] if by_path is None else [table.text(by_path)]
        if options.photo_column is None:
            names += [ids, articles.source_ids]
        articles.photos = _find_photos(options, names, say)
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


def _find_photos(options: BuildOptions, candidates: Sequence[pa.Array], say: Callable[[str], None]) -> list[str | None]:
    """The photo of each item: below --photos, or as the paths of --photo-column say. `candidates` are names by item;
    the first that knows any photo counts."""
    from uatmc_dist.encoders.photos import PhotoFolder, PhotoPaths

    photos = PhotoPaths(options.photo_root) if options.photos is None else PhotoFolder(options.photos)
    for names in candidates:
        found = [None if name is None else photos.find(name) for name in names.to_pylist()]
        used = {path for path in found if path is not None}
        if used:
            count = sum(path is not None for path in found)
            unused = f"; {len(photos) - len(used):,} photos belong to none of them" if len(photos) else ""
            say(f"{photos.folder}: photos of {count:,} of {len(found):,} items{unused}")
            return found
    example = next((name for name in candidates[0].to_pylist() if name is not None), "")
    raise UserError(
        f"{photos.folder}: no photo of an item is there, such as {example}; name photos by the items' ids, or give a "
        "column of their paths with --photo-column"
    )
