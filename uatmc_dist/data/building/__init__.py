"""From a shop's own files to a catalog: orders, articles, a folder of photos.

All that can be wrong with the tables is found before the first photo is encoded. What was encoded is kept in
OUT/encoded, also when the build is interrupted or done again.
"""

from collections.abc import Callable
from pathlib import Path

from uatmc_dist.data.building.articles import read_articles
from uatmc_dist.data.building.features import Shown, encode_articles
from uatmc_dist.data.building.options import BuildOptions, check_options
from uatmc_dist.data.building.orders import read_interactions
from uatmc_dist.data.catalog_writer import CatalogWriter, refuse_to_replace
from uatmc_dist.data.source import read_source

__all__ = ["BuildOptions", "build_catalog"]


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
    check_options(options)
    orders = read_source(options.interactions)
    articles = read_articles(options, orders, say)
    interactions, user_ids, kept_items, described, notes = read_interactions(options, orders, articles, say)
    articles = articles.chosen(kept_items)
    features = encode_articles(options.cache or out / "encoded", options, articles, shown, say)

    writer = CatalogWriter(out, options.name or out.resolve().name, len(user_ids), len(articles.titles), overwrite)
    for modality, rows in features.rows.items():
        writer.encoded(modality, rows, features.records[modality])
    writer.interactions(interactions)
    if "photo" in features.contents:
        features.contents["photo"] = [_within(out, path) for path in features.contents["photo"]]
    writer.finish(
        articles.source_ids.to_pylist(),
        articles.titles,
        {**described, **notes, **articles.notes, **features.notes},
        user_ids=user_ids,
        contents=features.contents,
    )


def _within(folder: Path, path: str | None) -> str | None:
    """Photos that lie in the catalog itself move with it."""
    if path is None or not Path(path).is_relative_to(folder.resolve()):
        return path
    return str(Path(path).relative_to(folder.resolve()))
