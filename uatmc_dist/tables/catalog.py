"""The tables of `uatmc data describe`."""

from rich.console import Console
from rich.table import Table

from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.describe import describe_features, popularity_quantiles


def print_catalog(console: Console, catalog: Catalog) -> None:
    counts = catalog.meta["num_interactions"]
    total = sum(counts.values())
    table = Table(title=f"{catalog.name} ({catalog.path})", show_header=False)
    for name, value in (
        ("users", f"{catalog.num_users:,}"),
        ("items", f"{catalog.num_items:,}"),
        ("interactions", f"{total:,}"),
        *((f"  {split}", f"{count:,}") for split, count in counts.items()),
        ("density", f"{total / (catalog.num_users * catalog.num_items):.6f}"),
        *(
            (key.replace("_", " "), value if isinstance(value, str) else f"{value:,}")
            for key, value in catalog.meta["notes"].items()
        ),
    ):
        table.add_row(name, value)
    console.print(table)
    quantiles = popularity_quantiles(catalog)
    table = Table(*(f"{share:.0%}" for share in quantiles), title="training interactions of an item, by quantile")
    table.add_row(*(f"{value:g}" for value in quantiles.values()))
    console.print(table)
    summaries = {name: describe_features(features) for name, features in catalog.features.items()}
    table = Table("features", *summaries)
    for title, show in (
        ("width", lambda summary: str(summary.width)),
        ("dtype", lambda summary: summary.dtype),
        ("encoder", lambda summary: summary.encoder),
        ("mean norm", lambda summary: f"{summary.mean_norm:.4f}"),
        ("smallest norm", lambda summary: f"{summary.min_norm:.4f}"),
        ("largest norm", lambda summary: f"{summary.max_norm:.4f}"),
        ("duplicates", lambda summary: f"{summary.duplicate_share:.2%}"),
        ("all-zero", lambda summary: f"{summary.zero_share:.2%}"),
    ):
        table.add_row(title, *(show(summary) for summary in summaries.values()))
    console.print(table)
