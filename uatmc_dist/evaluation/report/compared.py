"""Several runs beside each other: what a report of more than one begins with."""

from collections.abc import Sequence
from typing import Any

from uatmc_dist.evaluation.promotion import STRONGEST, find_result
from uatmc_dist.evaluation.report.figures import COLOURS, Figure, around, rounded
from uatmc_dist.evaluation.report.sources import RunFiles


def compared(runs: Sequence[RunFiles]) -> Figure:
    """A row for each run: accuracy, the strongest attack at the run's largest epsilon, and what none can pass."""
    rows = []
    for run in runs:
        found = run.evaluation or {}
        accuracy = [round(found[name], 4) if found else "" for name in ("recall@20", "ndcg@20")]
        attack: list[Any] = [""] * 5
        if run.attack is not None:
            k, epsilon = run.attack["k"], max(run.attack["epsilons"])
            result = find_result(run.attack["results"], STRONGEST, epsilon)
            bound = rounded(result[f"certified_hit@{k}"])
            failed = sum(check["passed"] is False for check in run.attack["checks"])
            hits = (round(result[f"hit@{k}_{when}"], 4) for when in ("before", "after"))
            attack = [epsilon, *hits, bound, failed]
        if run.evaluation is not None or run.attack is not None:
            rows.append((run.name, *accuracy, *attack))
    return Figure(
        "All runs",
        "Accuracy, and the share of anchors with a random target among their best, before and after the strongest "
        "attack at the largest epsilon; the certificate is what no attack of that epsilon passes.",
        ("run", "recall@20", "ndcg@20", "epsilon", "before", "strongest attack", "certificate", "checks failed"),
        rows,
    )


def trade_off(runs: Sequence[RunFiles]) -> Figure:
    """Accuracy against attackability at the largest epsilon that all runs have."""
    measured = [run for run in runs if run.protocol is not None]
    shown = [run for run in measured if run.protocol == measured[0].protocol]
    others = [run.name for run in measured if run not in shown]
    # Neighbours have their labels on different sides.
    by_recall = sorted(shown, key=lambda run: run.evaluation["recall@20"] if run.evaluation else 0.0)
    common = set.intersection(*(set(run.attack["epsilons"]) for run in shown if run.attack)) if shown else set()
    rows, traces = [], []
    for index, run in enumerate(shown if common else []):
        assert run.attack is not None and run.evaluation is not None
        k, epsilon = run.attack["k"], max(common)
        result = find_result(run.attack["results"], STRONGEST, epsilon)
        bound = rounded(result[f"certified_hit@{k}"])
        row = (run.name, epsilon, run.evaluation["recall@20"], result[f"hit@{k}_after"], bound)
        rows.append(row)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": run.name,
                "x": [row[2]],
                "y": [row[3]],
                "text": [run.name],
                "textposition": ("top center", "bottom center")[by_recall.index(run) % 2],
                "cliponaxis": False,
                "marker": {"size": 14, "color": COLOURS[index % len(COLOURS)]},
            }
        )
    return Figure(
        "Accuracy and attackability",
        "Right is more accurate, down is harder to attack. Strongest attack, random targets, largest epsilon."
        + (f" Left out, as measured under another protocol: {', '.join(others)}." if others else ""),
        ("run", "epsilon", "recall@20", "strongest_attack", "certificate"),
        rows,
        traces,
        {
            "xaxis": {"title": {"text": "Recall@20"}, "range": around([row[2] for row in rows])},
            "yaxis": {"title": {"text": "Hit after the strongest attack"}, "rangemode": "tozero"},
        },
    )
