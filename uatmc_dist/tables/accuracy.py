"""The tables of accuracy that a person reads: a model beside the baselines of its catalog."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uatmc_dist.config import METRIC_KS, Config
from uatmc_dist.evaluation.beyond import COLD_BELOW
from uatmc_dist.evaluation.comparison import TITLES, Comparison, together
from uatmc_dist.evaluation.ending import compare_at_the_end, kept_epochs

_HEADINGS = {
    "recall@20": "Recall\n@20",
    "ndcg@20": "NDCG\n@20",
    "coverage@20": "cover-\nage",
    "gini@20": "Gini",
    "cold_share@20": "cold\nshare",
    "cold_recall@20": "cold\nrecall",
}


def print_accuracy(console: Console, run: Path, figures: Mapping[str, Any], compared: Comparison) -> None:
    title = f"{run}: {compared.split} split, training items masked"
    table = Table("metric", *(f"@{k}" for k in METRIC_KS), title=title)
    for name in ("recall", "ndcg", "precision", "map"):
        table.add_row(name, *(f"{figures[f'{name}@{k}']:.4f}" for k in METRIC_KS))
    console.print(table)


def print_beside_baselines(console: Console, run: Path, figures: Mapping[str, Any], compared: Comparison) -> None:
    """The model in the first row, each baseline in one of its own, red where the model is below; then the verdict."""
    headings = dict(_HEADINGS)
    if compared.metric not in headings:
        headings = {compared.metric: compared.metric.replace("@", "\n@"), **headings}
    table = Table(
        title=f"beside the baselines, {compared.split} split",
        caption=f"of the 20 best items of each user; cold: fewer than {COLD_BELOW} training interactions",
    )
    table.add_column("")
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(run.resolve().name, *_cells(figures, headings), style="bold", end_section=True)
    for name, values in compared.figures.items():
        table.add_row(TITLES[name], *_cells(values, headings), style="red" if name in compared.below else "")
    console.print(table)
    for line in (*compared.notes(), *compared.gaps()):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    print_verdict(console, compared)


def print_verdict(console: Console, compared: Comparison, prefix: str = "") -> None:
    style = "red" if compared.below else "green"
    console.print(prefix + compared.verdict(), style=style, markup=False, highlight=False, soft_wrap=True)


def print_end(console: Console, config: Config) -> None:
    """After training: the epochs that early stopping kept, and the verdict on the validation split."""
    for line in kept_epochs(config):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    compared = compare_at_the_end(config)
    if compared is None:
        return
    print_verdict(console, compared)
    if compared.slow:
        names = ", ".join(TITLES[name] for name in compared.slow)
        line = f"not measured on this catalog yet: {names}; run `uatmc evaluate {config.run_dir}`"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_runs(
    console: Console, title: str, evaluations: Mapping[Path, dict[str, Any]], rest: Mapping[Path, Sequence[str]]
) -> None:
    """The runs of each catalog and split with its baselines below; `rest`: what an attack does to a run."""
    groups = together(evaluations)
    table = Table(
        title=title, caption="best: the strongest attack for each target; bound: certified, no attack passes it"
    )
    table.add_column("run", no_wrap=True)
    for column in (*list(_HEADINGS.values())[:2], "before", "after\nPGD", "after\nbest", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    names = list(_HEADINGS)[:2]
    for name, baselines, compared in groups:
        for run, beside in compared.items():
            table.add_row(run.name, *_cells(evaluations[run], names), *rest[run], style="red" if beside.below else "")
        table.add_section()
        label = f" ({name})" if len(groups) > 1 else ""
        for baseline, values in baselines.items():
            table.add_row(f"{TITLES[baseline]}{label}", *_cells(values, names), *["-"] * 4, style="dim")
        table.add_section()
    console.print(table)
    for _, _, compared in groups:
        for run, beside in compared.items():
            if "baselines" not in evaluations[run]:
                line = f"{run}: not compared with baselines; run `uatmc evaluate {run}` again"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if beside.below:
                print_verdict(console, beside, f"{run.name}: ")


def _cells(values: Mapping[str, Any], names: Sequence[str] | Mapping[str, str]) -> list[str]:
    return ["-" if values.get(name) is None else f"{values[name]:.4f}" for name in names]
