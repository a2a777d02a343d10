"""The picture of the README: accuracy of each defence, what the strongest attack reaches, and what none can pass.

python -m benchmarks.tradeoff          # docs/pictures/tradeoff-light.svg and -dark.svg, from benchmarks/results/

Means over the training seeds of benchmarks/results/defences-vbpr-hmfashion.csv; EASE of accuracy.csv beside it.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from benchmarks.common import RESULTS, SCHEMES, style, write_picture

_CATALOG = "hmfashion"
_SHOWN = {
    "clean": "undefended",
    "shrunk-0.5": "content weighed by half",
    "noise": "noise",
    "amr": "AMR",
    "uat": "UAT",
    "certified_any": "certified, any content",
}
_BELOW = {"uat": "bottom left", "amr": "bottom right"}
"""Names that stand below their points, where others would cover them."""
_ATTACK, _CERTIFICATE = "random 0.05 strongest", "certified linf paper 0.05"
_ATTACKED, _CERTIFIED = "#d1495b", "#3a7ca5"


def figures(path: Path) -> dict[str, dict[str, float]]:
    """Of each defence the mean over seeds of each figure."""
    found: dict[str, dict[str, list[float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["defence"], {}).setdefault(row["figure"], []).append(float(row["value"]))
    return {name: {key: float(np.mean(values)) for key, values in of.items()} for name, of in found.items()}


def recall_of_ease(path: Path) -> float:
    """Recall@20 on the same split."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        wanted = {"catalog": _CATALOG, "what": "EASE", "figure": "recall@20"}
        return next(float(row["value"]) for row in rows if wanted.items() <= row.items())


def picture(found: dict[str, dict[str, float]], ease: float, scheme: str) -> go.Figure:
    _, ink, line = SCHEMES[scheme]
    figure = go.Figure()
    for name in _SHOWN:
        one = found[name]
        reach = [100 * one[_ATTACK], 100 * one[_CERTIFICATE]]
        figure.add_scatter(x=reach, y=[one["recall@20"]] * 2, mode="lines", line={"color": line}, showlegend=False)
    for key, label, color, symbol in (
        (_ATTACK, "after the strongest attack on photo and text, ε = 0.05", _ATTACKED, "circle"),
        (_CERTIFICATE, "certificate: no such attack passes it", _CERTIFIED, "diamond-open"),
    ):
        figure.add_scatter(
            x=[100 * found[name][key] for name in _SHOWN],
            y=[found[name]["recall@20"] for name in _SHOWN],
            mode="markers+text" if key == _ATTACK else "markers",
            text=list(_SHOWN.values()),
            textposition=[_BELOW.get(name, "top left") for name in _SHOWN],
            marker={"color": color, "size": 11, "symbol": symbol, "line": {"width": 2}},
            name=label,
        )
    figure.add_hline(y=ease, line={"dash": "dot", "color": ink}, annotation_text="EASE: no content, nothing to attack")
    style(
        figure,
        scheme,
        {
            "title": "users who get a random attacked item into their 50 best, % (logarithmic)",
            "type": "log",
            "range": [np.log10(1.5), np.log10(70)],
            "tickvals": [2, 4, 6, 10, 20, 40, 60],
        },
        {"title": "Recall@20", "tickformat": ".3f", "range": [0.173, 0.208]},
    )
    return figure


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = figures(RESULTS.parent / f"defences-vbpr-{_CATALOG}.csv")
    ease = recall_of_ease(RESULTS.parent / "accuracy.csv")
    for scheme in SCHEMES:
        path = write_picture(picture(found, ease, scheme), Path(f"docs/pictures/tradeoff-{scheme}.svg"), 860, 460)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
