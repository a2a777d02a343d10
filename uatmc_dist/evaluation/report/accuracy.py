"""Accuracy on the report page: the runs among the baselines of their catalogs."""

from collections.abc import Sequence
from typing import Any

from uatmc_dist.config import METRICS
from uatmc_dist.evaluation.beyond import BEYOND, COLD_BELOW
from uatmc_dist.evaluation.comparison import TITLES, together
from uatmc_dist.evaluation.report.figures import Figure
from uatmc_dist.evaluation.report.sources import RunFiles

_RUN, _BELOW, _BASELINE = "#4a86c8", "#d9534f", "#8a8a8a"


def accuracy(runs: Sequence[RunFiles]) -> Figure:
    """Every evaluated run, then the baselines that any of them was compared with."""
    evaluated = {run.path: run for run in runs if run.evaluation}
    groups = together({path: run.evaluation for path, run in evaluated.items() if run.evaluation})
    names = [name for name in (*BEYOND, *METRICS) if any(name in (run.evaluation or {}) for run in evaluated.values())]
    rows: list[tuple[Any, ...]] = []
    bars: dict[str, list[tuple[str, float]]] = {"runs": [], "runs below a baseline": [], "baselines": []}
    warnings, notes = [], []
    for group, baselines, compared in groups:
        label = f" ({group})" if len(groups) > 1 else ""
        for path, beside in compared.items():
            evaluation = evaluated[path].evaluation or {}
            name = evaluated[path].name + label
            rows.append((name, beside.split, *_cells(evaluation, names), ", ".join(TITLES[n] for n in beside.below)))
            bars["runs below a baseline" if beside.below else "runs"].append((name, evaluation["recall@20"]))
            if beside.below:
                warnings.append(f"{name}: {beside.verdict()}")
            notes += [note for note in (*beside.notes(), *beside.gaps()) if note not in notes]
        for baseline, values in baselines.items():
            name, split = TITLES[baseline] + label, next(iter(compared.values())).split
            rows.append((name, split, *_cells(values, names), ""))
            bars["baselines"].append((name, values["recall@20"]))
    colours = dict(zip(bars, (_RUN, _BELOW, _BASELINE), strict=True))
    return Figure(
        "Accuracy",
        "Full ranking over all items, training items masked; nothing is attacked. Coverage, Gini and cold items are of "
        f"the 20 best items of each user; cold: fewer than {COLD_BELOW} training interactions. " + "; ".join(notes),
        ("run", "split", *names, "below"),
        rows,
        [
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": [name for name, _ in entries],
                "x": [value for _, value in entries],
                "marker": {"color": colours[kind]},
            }
            for kind, entries in bars.items()
            if entries
        ],
        {
            "barmode": "overlay",  # each bar has a row of its own, whatever trace it is of
            "xaxis": {"title": {"text": "Recall@20"}, "rangemode": "tozero"},
            "yaxis": {"categoryorder": "total ascending"},
        },
        warnings,
    )


def _cells(values: dict[str, Any], names: Sequence[str]) -> list[Any]:
    return ["" if values.get(name) is None else round(values[name], 4) for name in names]
