"""The tables of `uatmc plan`."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_plan(console: Console, made: Any) -> None:
    for table in (_memory_table(made), *(_step_table(made, phase) for phase in made.phases), _shards_table(made)):
        console.print(table)


def _memory_table(made: Any) -> Table:
    table = Table("component", "where", title=f"memory of a rank in GB, {made.devices} rank(s) on {made.nodes} node(s)")
    for phase in made.phases:
        table.add_column(f"{phase} phase", justify="right")
    of_phases = [{(c.place, c.name): c.bytes for c in phase.memory} for phase in made.phases.values()]
    places = "device", "host"
    for place in places:
        for key in dict.fromkeys(key for each in of_phases for key in each if key[0] == place):
            if any(each.get(key) for each in of_phases):
                table.add_row(key[1], place, *(f"{each[key] / 1e9:.3f}" if key in each else "-" for each in of_phases))
        sums = (sum(size for key, size in each.items() if key[0] == place) for each in of_phases)
        table.add_row("[bold]sum[/]", place, *(f"[bold]{size / 1e9:.3f}[/]" for size in sums), end_section=True)
    return table


def _step_table(made: Any, phase: str) -> Table:
    step = made.phases[phase].step
    table = Table("term", "counts", title=f"a step of the {phase} phase")
    for column in ("ms", "share"):
        table.add_column(column, justify="right")
    table.add_column("limit")
    whole = sum(term.seconds for term in step.terms)
    for term in step.terms:
        counts = ", ".join(f"{amount:.3g} {name}" for name, amount in term.work.counts().items())
        share = f"{term.seconds / whole:.0%}" if whole else "-"
        table.add_row(term.name, counts or "-", f"{term.seconds * 1e3:.3f}", share, term.limit)
    return table


def _shards_table(made: Any) -> Table:
    table = Table("table", "rows x width", "sharding", "shards", title="tables by TorchRec's planner")
    for column in ("rows a shard", "GB a rank", "ms a step"):
        table.add_column(column, justify="right")
    for found in made.tables or ():
        table.add_row(
            found.name,
            f"{found.rows:,} x {found.width}",
            f"{found.sharding}, {found.kernel}",
            str(found.shards),
            f"{found.rows_per_shard:,}",
            f"{found.bytes_per_rank / 1e9:.3f}",
            f"{sum(found.milliseconds.values()):.3f}",
        )
    return table
