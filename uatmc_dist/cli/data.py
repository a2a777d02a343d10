"""`uatmc data`: catalogs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uatmc_dist.cli.common import app, console, tell_catalog, tell_written
from uatmc_dist.progress import shown

if TYPE_CHECKING:
    from uatmc_dist.data.building import BuildOptions

data = typer.Typer(help="Make and look at catalogs.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder of the new catalog.")],
    interactions: Annotated[Path, typer.Option(help="Orders, clicks, ratings: CSV, TSV, Parquet, JSON lines, .inter.")],
    items: Annotated[Path | None, typer.Option(help="Articles with their texts, a row each.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos ID.EXT, at any depth.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the catalog; that of its folder by default.")] = None,
    user_column: Annotated[str | None, typer.Option(help="Guessed: user_id, customer_id, ...")] = None,
    item_column: Annotated[str | None, typer.Option(help="Guessed: item_id, article_id, asin, ...")] = None,
    time_column: Annotated[str | None, typer.Option(help="Guessed: timestamp, t_dat, date, ...")] = None,
    rating_column: Annotated[str | None, typer.Option(help="Guessed: rating, stars, ...")] = None,
    min_rating: Annotated[float | None, typer.Option(help="Leave out interactions rated lower.")] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The items' ids in --items. Guessed like --item-column.")
    ] = None,
    title_column: Annotated[str | None, typer.Option(help="Guessed: title, name, prod_name, ...")] = None,
    text_columns: Annotated[
        str | None,
        typer.Option(help="Columns that make the text, with commas. Guessed: text, or title and the like."),
    ] = None,
    photo_column: Annotated[str | None, typer.Option(help="Paths below --photos, or file names.")] = None,
    k_core: Annotated[
        int | None,
        typer.Option(help="Leave out users and items with fewer interactions; 5, or 1 (keep all) with a given split."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="chronological (each user's last are valid and test), random (of each user's), leave-one-out, date, "
            "column (given). By default column where there is one, chronological where there are times."
        ),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="train, valid, test, or 0, 1, 2; for --split column.")
    ] = None,
    valid_from: Annotated[str | None, typer.Option(help="First day of valid, for --split date.")] = None,
    test_from: Annotated[str | None, typer.Option(help="First day of test, for --split date.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --split random.")] = 0,
    visual_encoder: Annotated[
        str,
        typer.Option(
            help="efficientnet-lite0, timm:NAME, open_clip:NAME/WEIGHTS, one of transformers, or smooth:SIGMA:NAME."
        ),
    ] = "efficientnet-lite0",
    text_encoder: Annotated[
        str, typer.Option(help="Name of a sentence-transformers model, or its folder.")
    ] = "all-MiniLM-L6-v2",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where photos and texts are encoded.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="What was encoded before; encoded/ of the catalog.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a catalog that is there.")] = False,
) -> None:
    """From a shop's own files to a catalog: orders, articles, photos. Goes on where it was interrupted."""
    from uatmc_dist.data.building import BuildOptions

    options = BuildOptions(
        interactions=interactions,
        items=items,
        photos=photos,
        name=name,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        rating_column=rating_column,
        min_rating=min_rating,
        id_column=id_column,
        title_column=title_column,
        text_columns=tuple(part.strip() for part in (text_columns or "").split(",") if part.strip()),
        photo_column=photo_column,
        k_core=k_core,
        split=split,  # type: ignore[arg-type]  # checked there, in one line
        split_column=split_column,
        valid_from=valid_from,
        test_from=test_from,
        seed=seed,
        visual_encoder=visual_encoder,
        text_encoder=text_encoder,
        device=device,
        cache=cache,
    )
    _build(out, options, overwrite)


def _build(out: Path, options: "BuildOptions", overwrite: bool) -> None:
    from uatmc_dist.data.building import build_catalog

    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    build_catalog(out, options, overwrite, shown, say)
    tell_catalog(out)


@data.command("export-mmrec")
def export_mmrec(
    path: Annotated[Path, typer.Argument(help="Folder of a catalog.")],
    out: Annotated[Path, typer.Argument(help="Folder to write NAME.inter and the .npy files into.")],
) -> None:
    """Writes a catalog in the MMRec convention, so that peer libraries run on the same data."""
    from uatmc_dist.data import mmrec
    from uatmc_dist.data.catalog import Catalog

    for written in mmrec.export_mmrec(Catalog(path), out):
        tell_written(written)


@data.command("import-mmrec")
def import_mmrec(
    source: Annotated[Path, typer.Argument(help="Folder with NAME.inter and image_feat.npy, text_feat.npy or both.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new catalog.")],
    visual_encoder: Annotated[str, typer.Option(help="What made image_feat.npy.")] = "unknown",
    text_encoder: Annotated[str, typer.Option(help="What made text_feat.npy.")] = "unknown",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a catalog that is there.")] = False,
) -> None:
    """Imports a data set in the MMRec convention."""
    from uatmc_dist.data import mmrec

    notes = mmrec.import_mmrec(source, out, {"visual": visual_encoder, "text": text_encoder}, overwrite)
    console.print(
        f"{notes['duplicated_interactions_dropped']} duplicated interactions kept once; "
        f"{notes['cold_start_interactions_dropped']} valid/test interactions of "
        f"{notes['cold_start_users']} cold-start users left out",
        highlight=False,
    )
    tell_catalog(out)


@data.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder of the new catalog.")],
    users: Annotated[int, typer.Option(help="Number of users.")] = 3000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 2000,
    interactions: Annotated[int, typer.Option(help="Number of interactions, at least 5 a user.")] = 24000,
    visual_dim: Annotated[int, typer.Option(help="Width of the visual features; not with --photos.")] = 256,
    text_dim: Annotated[int, typer.Option(help="Width of the textual features; not with --photos.")] = 128,
    photos: Annotated[
        bool, typer.Option("--photos", help="Draw photos and write texts (OUT/shop), and encode them.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same catalog.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a catalog that is there.")] = False,
) -> None:
    """Makes a planted-taste catalog: clusters drive photos, texts and behaviour."""
    from uatmc_dist.data import synthetic

    if photos:
        _synthesize_with_photos(out, users, items, interactions, seed, overwrite)
        return
    with shown("rows") as progress:
        synthetic.synthesize(
            out,
            users=users,
            items=items,
            interactions=interactions,
            visual_dim=visual_dim,
            text_dim=text_dim,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    tell_catalog(out)


def _synthesize_with_photos(out: Path, users: int, items: int, interactions: int, seed: int, overwrite: bool) -> None:
    from uatmc_dist.data import synthetic_shop
    from uatmc_dist.data.building import BuildOptions
    from uatmc_dist.data.catalog_writer import refuse_to_replace

    refuse_to_replace(out, overwrite)
    shop = out / "shop"
    with shown("photos drawn") as progress:
        synthetic_shop.synthesize_shop(
            shop, users=users, items=items, interactions=interactions, seed=seed, progress=progress
        )
    options = BuildOptions(
        interactions=shop / synthetic_shop.ORDERS,
        items=shop / synthetic_shop.ARTICLES,
        photos=shop / synthetic_shop.PHOTOS,
    )
    _build(out, options, overwrite)


@data.command()
def describe(path: Annotated[Path, typer.Argument(help="Folder of a catalog.")]) -> None:
    """Counts, density, popularity, and what the features look like."""
    from uatmc_dist.data.catalog import Catalog
    from uatmc_dist.tables import catalog as catalog_tables

    catalog = Catalog(path)
    catalog_tables.print_catalog(console, catalog)
