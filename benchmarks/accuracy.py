"""The accuracy table: configs/default.yaml, unchanged, beside the baselines of every catalog, over several seeds.

python -m benchmarks.accuracy data/hmfashion data/baby data/quickstart --write docs/results.md

What is trained, configs/plans/accuracy.yaml says. Runs are runs/accuracy/CATALOG-VARIANT-sSEED; what is there
already is not made again. Prints a table a catalog (test split; means with 95 % intervals over the seeds, Student's
t), writes every figure to benchmarks/results/accuracy.csv, and with --write puts the tables between the marks
`<!-- accuracy -->` and `<!-- end -->` of a Markdown file.
"""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, document_parser, replace_block, with_interval
from uatmc_dist.evaluation.comparison import TITLES
from uatmc_dist.runs import RunFolder
from uatmc_dist.tables.markdown import markdown_table

PLAN = Path("configs/plans/accuracy.yaml")
RUNS = Path("runs/accuracy")
FIGURES = {
    "Recall@20": "recall@20",
    "NDCG@20": "ndcg@20",
    "coverage": "coverage@20",
    "Gini": "gini@20",
    "cold share": "cold_share@20",
    "cold recall": "cold_recall@20",
}


@dataclass(frozen=True)
class Run:
    catalog: Path
    variant: str
    seed: int

    @property
    def path(self) -> Path:
        return RUNS / f"{self.catalog.name}-{self.variant.replace(' ', '-').lower()}-s{self.seed}"

    def make(self, config: str, overrides: list[str]) -> dict[str, Any]:
        """evaluation.json of the run on the test split; trains and evaluates what is missing."""
        if not (self.path / "model/model.safetensors").exists():
            where = [f"catalog={self.catalog}", f"output_dir={RUNS}", f"name={self.path.name}", f"seed={self.seed}"]
            call("train.py", config, *where, *overrides)
        if not (self.path / "evaluation.json").exists():
            call("-m", "uatmc_dist.cli", "evaluate", str(self.path))
        return json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))

    def best_epoch(self) -> tuple[int, int]:
        """(the epoch that early stopping kept, the last one)."""
        lines = RunFolder(self.path).read_metrics()
        curve = [(line["valid/recall@20"], line["epoch"]) for line in lines if "valid/recall@20" in line]
        return max(curve, key=lambda point: point[0])[1], curve[-1][1]


def call(*command: str) -> None:
    if subprocess.run([sys.executable, *command], check=False).returncode:
        raise SystemExit(f"{' '.join(command)}: failed")


def table(found: dict[str, list[dict[str, Any]]], epochs: dict[str, str], baselines: dict[str, Any]) -> str:
    def row(name: str, values: list[dict[str, Any]], epoch: str) -> list[str]:
        cells = [
            with_interval([each[key] for each in values if each[key] is not None], ".4f") for key in FIGURES.values()
        ]
        return [name, *cells, epoch]

    rows = [row(variant, values, epochs[variant]) for variant, values in found.items()]
    rows += [row(TITLES[name], [values], "") for name, values in baselines.items() if name != "bpr_mf"]
    return markdown_table(["", *FIGURES, "epoch kept, of"], rows)


def main() -> None:
    parser = document_parser(__doc__)
    parser.add_argument("catalogs", type=Path, nargs="+")
    arguments = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    parts, rows = [], []
    for catalog in arguments.catalogs:
        found, epochs, baselines = {}, {}, {}
        for variant, overrides in plan["variants"].items():
            runs = [Run(catalog, variant, seed) for seed in plan["seeds"]]
            found[variant] = [run.make(plan["config"], overrides) for run in runs]
            epochs[variant] = ", ".join("{} of {}".format(*run.best_epoch()) for run in runs)
            baselines |= found[variant][0]["baselines"]
            for run, figures in zip(runs, found[variant], strict=True):
                rows += [[catalog.name, variant, run.seed, key, figures[key]] for key in FIGURES.values()]
        for name, figures in baselines.items():
            rows += [[catalog.name, TITLES[name], "", key, figures[key]] for key in FIGURES.values()]
        ordered = {name: baselines[name] for name in TITLES if name in baselines}
        parts.append(f"{catalog.name}, test split:\n\n{table(found, epochs, ordered)}")
    text = "\n\n".join(parts)
    print(text)
    with (RESULTS.parent / "accuracy.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["catalog", "what", "seed", "figure", "value"], *rows])
    if arguments.write is not None:
        replace_block(arguments.write, "accuracy", text)


if __name__ == "__main__":
    main()
