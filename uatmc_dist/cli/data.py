"""`uatmc data`: catalogs."""

from pathlib import Path
from typing import Annotated

import typer

from uatmc_dist.cli.common import app, console, tell_catalog
from uatmc_dist.progress import shown

data = typer.Typer(help="Make and look at catalogs.", no_args_is_help=True)
app.add_typer(data, name="data")


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
    visual_dim: Annotated[int, typer.Option(help="Width of the visual features.")] = 256,
    text_dim: Annotated[int, typer.Option(help="Width of the textual features.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same catalog.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a catalog that is there.")] = False,
) -> None:
    """Makes a planted-taste catalog: clusters drive photos, texts and behaviour."""
    from uatmc_dist.data import synthetic

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


@data.command()
def describe(path: Annotated[Path, typer.Argument(help="Folder of a catalog.")]) -> None:
    """Counts, density, popularity, and what the features look like."""
    from uatmc_dist.data.catalog import Catalog
    from uatmc_dist.tables import catalog as catalog_tables

    catalog = Catalog(path)
    catalog_tables.print_catalog(console, catalog)
