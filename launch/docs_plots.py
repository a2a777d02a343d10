"""The plots of the site: each defence's accuracy beside what an attack reaches, from benchmarks/results/*.csv."""

import csv
import json
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parent.parent
_T_975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t by number of seeds, for a 95 % interval."""
_THREATS = {
    "random 0.1 strongest": "Lists with an attacked random item, ε = 0.1, %",
    "random any strongest": "Lists with an attacked random item, any photo and text, %",
    "content strongest file": "Lists with an item whose files were changed, %",
}
_PLANS = {
    "vbpr-hmfashion": "VBPR on H&M",
    "vbpr-baby": "VBPR on Amazon Baby",
    "own-users-hmfashion": "VBPR with own users, on H&M",
    "mmgcn-hmfashion": "MMGCN on H&M",
    "photos-hmfashion-built": "VBPR on H&M built from its photos: changed files",
}
_PAGE = """# Plots

Each point is a defence: up is more accurate, left is harder to attack. Bars are 95 % intervals over training seeds
where there are several. The numbers, how they were measured and by which command: [results](results.md). Made from
`benchmarks/results/` when the site is built; hover for figures, drag to look closer.

<script src="../assets/plotly.js"></script>

"""


def plots_page() -> str:
    parts = [_PAGE]
    for plan, title in _PLANS.items():
        found = _figures(ROOT / f"benchmarks/results/defences-{plan}.csv")
        parts.append(f"## {title}\n\n")
        for threat, label in _THREATS.items():
            points = [_point(name, of, threat) for name, of in found.items() if threat in of]
            if points:
                data = json.dumps(points).replace("<", "\\u003c")
                parts.append(
                    f"Recall@20, to the right: {label[0].lower()}{label[1:]}\n\n"
                    f'<div class="plot" role="group" aria-label="{title}: Recall@20 against {label}">'
                    f'<script type="application/json">{data}</script></div>\n\n'
                )
    return "".join(parts)


def _figures(path: Path) -> dict[str, dict[str, list[float]]]:
    """Values by defence and figure, a seed each."""
    found: dict[str, dict[str, list[float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["defence"], {}).setdefault(row["figure"], []).append(float(row["value"]))
    return found


def _point(name: str, figures: dict[str, list[float]], threat: str) -> dict[str, object]:
    hits, recall = [100 * hit for hit in figures[threat]], figures["recall@20"]
    return {
        "name": name,
        "x": round(mean(hits), 3),
        "y": round(mean(recall), 4),
        "dx": _half_interval(hits),
        "dy": _half_interval(recall),
        "seeds": len(hits),
    }


def _half_interval(values: list[float]) -> float:
    count = len(values)
    return round(_T_975[count] * stdev(values) / count**0.5, 4) if count > 1 else 0.0
