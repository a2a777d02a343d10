"""What the verbs share: the console, the arguments of a run, and how it is opened."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from uatmc_dist.progress import shown

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"uatmc-dist {version('uatmc-dist')}")
        raise typer.Exit


@app.callback()
def options(
    shown_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Catalogs, figures of trained models, reports, plans."""


Overrides = Annotated[list[str] | None, typer.Argument(help="option=value of the run's configuration.")]
RunPath = Annotated[Path, typer.Argument(help="Folder of a finished run.")]


def _opened_run(run: Path, overrides: list[str] | None) -> tuple[Any, Any, Any]:
    """(folder, configuration, catalog) of a finished run."""
    from uatmc_dist.config import load_config
    from uatmc_dist.data.catalog import Catalog
    from uatmc_dist.runs import opened_run

    folder = opened_run(run)
    config = load_config(run / "config.yaml", overrides or ())
    return folder, config, Catalog(config.catalog)


def opened(run: Path, overrides: list[str] | None) -> tuple[Any, Any, Any, Any]:
    """(folder, configuration, catalog, model) of a finished run."""
    from uatmc_dist.models.trained import TrainedModel

    folder, config, catalog = _opened_run(run, overrides)
    with shown("projected items") as progress:
        model = TrainedModel.load(run, catalog, progress)
    return folder, config, catalog, model


def opened_in_blocks(run: Path, overrides: list[str] | None) -> tuple[Any, Any, Any, Any, Any]:
    """(world, folder, configuration, catalog, this rank's blocks of the model). Collective."""
    from uatmc_dist.evaluation import on_ranks
    from uatmc_dist.parallel import process_group

    world = process_group.join()
    folder, config, catalog = _opened_run(run, overrides)
    with shown("projected items", world.is_first) as progress:
        return world, folder, config, catalog, on_ranks.load_blocks(run, config, catalog, world, progress)


def tell_catalog(path: Path) -> None:
    from uatmc_dist.data.catalog import Catalog

    catalog = Catalog(path)
    counts = ", ".join(f"{count:,} {split}" for split, count in catalog.meta["num_interactions"].items())
    console.print(
        f"{path}: {catalog.num_users:,} users, {catalog.num_items:,} items, {counts} interactions",
        highlight=False,
        soft_wrap=True,
    )


def tell_written(path: Path) -> None:
    console.print(f"written: {path}", highlight=False, soft_wrap=True, markup=False)


def has_failed(report: dict[str, Any]) -> bool:
    return any(check["passed"] is False for check in report["checks"])


def exit_where_failed(report: dict[str, Any], strict: bool) -> None:
    if strict and has_failed(report):
        raise typer.Exit(1)
