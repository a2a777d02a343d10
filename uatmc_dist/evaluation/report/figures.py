"""The figures of the report page: what Plotly draws, and the same numbers as rows."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from uatmc_dist.evaluation.promotion import STRONGEST
from uatmc_dist.evaluation.report.sources import RunFiles

COLOURS = (
    "#4a86c8",
    "#d9534f",
    "#3a9150",
    "#a3811f",
    "#2b93a8",
    "#b65aa5",
    "#c9682c",
    "#5f8f2f",
    "#8673c9",
    "#8a7a66",
)
"""Each has a contrast of at least 3 to 1 with the light and with the dark ground of the figures."""
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "hexagon", "pentagon")
_LOSSES = ("loss", "bpr", "bpr_adversarial", "bpr_certified", "regularisation", "alignment")


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    traces: list[dict[str, Any]] = field(default_factory=list)
    """Plotly traces; none: a table alone."""
    layout: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """Red lines below the caption."""

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text).writerows([self.columns, *([_harmless(cell) for cell in row] for row in self.rows)])
        return text.getvalue()


def _harmless(cell: Any) -> Any:
    """Titles come from sellers; a spreadsheet must not take one for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def training_curves(runs: Sequence[RunFiles]) -> Figure:
    rows, traces = [], []
    for index, run in enumerate(runs):
        for name in _LOSSES:
            points = [(line["step"], line[name]) for line in run.metrics if name in line]
            rows += [(run.name, name, step, value) for step, value in points]
            if points and name in ("loss", "bpr"):
                dash = "solid" if name == "loss" else "dot"
                traces.append(curve(f"{run.name}: {name}", points, index, dash))
    return Figure(
        "Training loss",
        "Loss and its clean BPR part by step; a jump is the start of the adversarial phase. The CSV has all terms.",
        ("run", "term", "step", "value"),
        rows,
        traces,
        {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"title": {"text": "loss"}, "type": "log", "dtick": "D2"},
        },
    )


def validation_curves(runs: Sequence[RunFiles]) -> Figure:
    rows, traces = [], []
    for index, run in enumerate(runs):
        for name in ("recall@20", "ndcg@20"):
            points = [(line["step"], line[f"valid/{name}"]) for line in run.metrics if f"valid/{name}" in line]
            rows += [(run.name, name, step, value) for step, value in points]
            if points:
                traces.append(curve(f"{run.name}: {name}", points, index, "solid" if name == "recall@20" else "dot"))
    return Figure(
        "Accuracy on the validation split",
        "Full ranking, training items masked.",
        ("run", "metric", "step", "value"),
        rows,
        traces,
        {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "metric"}, "rangemode": "tozero"}},
    )


def hits_by_epsilon(run: RunFiles, stratum: str) -> Figure:
    """Every attack, with the certificate for the same targets and anchors above."""
    attack = run.attack
    assert attack is not None
    k = attack["k"]
    results = [result for result in attack["results"] if result["stratum"] == stratum]
    before = results[0][f"hit@{k}_before"]
    bound = sorted({(r["epsilon"], r[f"certified_hit@{k}"]) for r in results if r[f"certified_hit@{k}"] is not None})
    traces, rows = [], []
    for index, name in enumerate(dict.fromkeys(result["attack"] for result in results)):
        of_attack = sorted((r["epsilon"], r[f"hit@{k}_after"], r) for r in results if r["attack"] == name)
        line = curve(name, [(0.0, before), *((epsilon, after) for epsilon, after, _ in of_attack)], index)
        if name == STRONGEST:
            line |= {"line": {"width": 9, "color": "#cc3311"}, "opacity": 0.35, "mode": "lines"}
        traces.append(line)
        for epsilon, _, result in of_attack:
            rows.append((name, epsilon, *_cells(result, before, k)))
    for trace in traces:  # a logarithmic axis has no zero
        trace["y"] = [value or None for value in trace["y"]]
    furthest = max(attack["epsilons"])
    for result in (result for result in attack["any_content"] if result["stratum"] == stratum):
        rows.append((result["attack"], "any content", *_cells(result, before, k)))
        if result["attack"] == STRONGEST:
            after, limit = result[f"hit@{k}_after"], result[f"certified_hit@{k}"]
            line = curve("any photo and text: strongest attack", [(0.0, after), (furthest, after)], 0, "dot")
            traces.append(line | {"mode": "lines", "line": {"dash": "dot", "width": 2, "color": "#cc3311"}})
            if limit is not None:
                line = curve("any photo and text: certificate", [(0.0, limit), (furthest, limit)], 0, "dot")
                traces.append(line | {"mode": "lines", "line": {"dash": "dot", "width": 3, "color": "#888888"}})
    if bound:
        certificate = curve("certificate: no attack can pass", [(0.0, before), *bound], 0, "dash")
        traces.append(certificate | {"line": {"dash": "dash", "width": 3, "color": "#888888"}})
    return Figure(
        f"{run.name}: Hit@{k} of {stratum} targets",
        f"Share of anchor users who get the target into their {k} best, by the size of the perturbation; mean over "
        "targets. Between the strongest attack and the certificate lies what is not known. Dotted, without an epsilon: "
        "photo and text replaced by any others. Zero is not drawn.",
        (
            "attack",
            "epsilon",
            f"hit@{k}_before",
            f"hit@{k}_after",
            "promotion_gain",
            "promoted_share",
            "mean_rank_change",
            f"certified_hit@{k}",
        ),
        rows,
        traces,
        {
            "xaxis": {"title": {"text": "epsilon"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": f"Hit@{k}, logarithmic"}, "type": "log", "tickformat": ".2~%", "dtick": "D2"},
        },
    )


def _cells(result: dict[str, Any], before: float, k: int) -> tuple[float | str, ...]:
    return (
        *(round(value, 6) for value in (before, result[f"hit@{k}_after"], result["promotion_gain"])),
        round(result["promoted_share"], 4),
        round(result["mean_rank_change"], 1),
        rounded(result[f"certified_hit@{k}"]),
    )


def rounded(bound: float | None) -> float | str:
    return "none" if bound is None else round(bound, 6)


def mismatch_histogram(run: RunFiles, title: str, caption: str, *path: str) -> Figure:
    """Before and after training, from mismatch.json; `path` leads to the entry that holds a histogram."""
    assert run.mismatch is not None
    traces, rows = [], []
    for index, stage in enumerate(("before", "after")):
        entry = run.mismatch[stage]
        for key in path:
            entry = entry[key]
        edges, counts = entry["histogram"]["edges"], entry["histogram"]["counts"]
        middles = [round((low + high) / 2, 4) for low, high in pairwise(edges)]
        rows += [(stage, middle, count) for middle, count in zip(middles, counts, strict=True)]
        traces.append(
            {
                "type": "bar",
                "name": f"{stage} ({run.mismatch['before_is']})" if stage == "before" else stage,
                "x": middles,
                "y": counts,
                "opacity": 0.65,
                "marker": {"color": COLOURS[index]},
            }
        )
    layout = {"barmode": "overlay", "xaxis": {"title": {"text": path[-1]}}, "yaxis": {"title": {"text": "items"}}}
    return Figure(f"{run.name}: {title}", caption, ("stage", path[-1], "items"), rows, traces, layout)


def mismatch_strength(run: RunFiles) -> Figure:
    """How much each kind of step of the adversary raises the loss."""
    assert run.mismatch is not None
    rows = [
        (stage, entry["epsilon"], float(f"{run.mismatch[stage]['clean_loss']:.4g}"), name, float(f"{rise:.4g}"))
        for stage in ("before", "after")
        for entry in run.mismatch[stage]["strength"]
        for name, rise in entry["rise"].items()
    ]
    report = run.mismatch
    return Figure(
        f"{run.name}: what each kind of step does to the loss",
        "Rise of the loss when all items are perturbed: separately (uat), coordinated in item space (uat_mc) and in "
        f"user space (lambda = {report['adv_align_weight']:g}), and others. Before is {report['before_is']}.",
        ("stage", "epsilon", "clean loss", "step", "rise"),
        rows,
    )


def most_promotable(run: RunFiles) -> Figure:
    """The items of which the certificate promises least, at the largest epsilon of the threat that was attacked."""
    certificate = run.certificate
    assert certificate is not None
    k = certificate["k"]
    threat = run.attack["threat_model"] if run.attack else {"norm": "linf", "budget": "paper"}
    entry = max(
        (r for r in certificate["results"] if (r["norm"], r["budget"]) == (threat["norm"], threat["budget"])),
        key=lambda result: result["epsilon"],
    )
    return Figure(
        f"{run.name}: the ten most promotable items",
        f"Into how many users' {k} best each could come at most ({entry['norm']}, budget {entry['budget']}, "
        f"epsilon {entry['epsilon']:g}); out of {certificate['users']:,} users.",
        ("item", "source id", "title", f"certified hit@{k}"),
        [
            (item["item"], item["source_id"], item["title"], f"{item[f'certified_hit@{k}']:.4f}")
            for item in entry["most_promotable"]
        ],
    )


def around(values: Sequence[float]) -> list[float]:
    """A range with room at both ends, also for a single value."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.15 * max(high - low, 0.1 * high, 1e-3)
    return [low - room, high + room]


def curve(name: str, points: Sequence[tuple[float, float]], index: int, dash: str = "solid") -> dict[str, Any]:
    if index >= len(COLOURS):
        dash = "dashdot"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) < 30 else "lines",
        "name": name,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "line": {"dash": dash, "color": COLOURS[index % len(COLOURS)]},
        "marker": {"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 8},
    }
