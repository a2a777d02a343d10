"""Accuracy and attackability of BPR-MF, clean VBPR and every defence, over several training seeds.

python -m benchmarks.defences configs/hm-fashion.yaml --seeds 0 1 2

Trains, evaluates and attacks what is not there yet (runs/NAME-VARIANT-sSEED), then prints means and standard
deviations over the seeds and writes them to benchmarks/results/defences-NAME.csv.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS
from uatmc_dist.config import load_config
from uatmc_dist.evaluation.promotion import find_result

EPOCHS = "adversarial.epochs=10"
CLEAN = {"bpr-mf": ["model.content=false", "adversarial.epochs=0"], "clean": ["adversarial.epochs=0"]}
DEFENCES = {
    "none": [EPOCHS, "adversarial.adversary=none"],
    "uat": [EPOCHS, "adversarial.adversary=uat"],
    "uat_mc": [EPOCHS, "adversarial.adversary=uat_mc"],
    "uat_mc-0.5": [EPOCHS, "adversarial.adversary=uat_mc", "adversarial.adv_align_weight=0.5"],
}
"""Variant -> overrides. The defences start from the clean run of the same seed."""
COLUMNS = ("recall@20", "ndcg@20", "hit@50_before", "hit@50_fgsm", "hit@50_pgd", "gain_pgd")


def uatmc(*arguments: object) -> None:
    code = "from uatmc_dist.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def train(config: Path, ranks: int, overrides: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    threads = str(max((os.cpu_count() or 1) // ranks, 1))
    subprocess.run(
        [*command, "train.py", str(config), *overrides], check=True, env={**os.environ, "OMP_NUM_THREADS": threads}
    )


def measure(config: Path, variant: str, overrides: list[str], seed: int, ranks: int) -> dict[str, float]:
    base = load_config(config)
    names = {name: f"{base.name}-{name}-s{seed}" for name in ("clean", variant)}
    run = base.output_dir / names[variant]
    if not (run / "model/model.safetensors").exists():
        start = [f"start_from={base.output_dir / names['clean']}"] if variant in DEFENCES else []
        train(config, ranks, [f"name={names[variant]}", f"seed={seed}", *start, *overrides])
    if not (run / "evaluation.json").exists():
        uatmc("evaluate", run)
    accuracy = json.loads((run / "evaluation.json").read_text())
    figures = {name: accuracy[name] for name in ("recall@20", "ndcg@20")}
    if variant == "bpr-mf":
        return figures
    if not (run / "attack.json").exists():
        uatmc("attack", run)
    results = json.loads((run / "attack.json").read_text())["results"]
    fgsm, pgd = (find_result(results, attack, 0.1) for attack in ("fgsm", "pgd"))
    return {
        **figures,
        "hit@50_before": pgd["hit@50_before"],
        "hit@50_fgsm": fgsm["hit@50_after"],
        "hit@50_pgd": pgd["hit@50_after"],
        "gain_pgd": pgd["promotion_gain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    table = Table(
        "variant", *COLUMNS, title=f"{arguments.config}: mean and standard deviation, seeds {arguments.seeds}"
    )
    rows = []
    for variant, overrides in {**CLEAN, **DEFENCES}.items():
        figures = [measure(arguments.config, variant, overrides, seed, arguments.ranks) for seed in arguments.seeds]
        for seed, figure in zip(arguments.seeds, figures, strict=True):
            rows.append([variant, seed, *(f"{figure[name]:.5f}" if name in figure else "" for name in COLUMNS)])
        cells = []
        for name in COLUMNS:
            values = [figure[name] for figure in figures if name in figure]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "-")
        table.add_row(variant, *cells)
    path = RESULTS.parent / f"defences-{arguments.config.stem}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["variant", "seed", *COLUMNS], *rows])
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
