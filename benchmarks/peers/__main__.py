"""Beside MMRec's VBPR, iALS and EASE on the same files, one process and one thread each, one after the other.

python -m benchmarks.peers data/hmfashion --mmrec ../MMRec --epochs 60 --write docs/benchmarks.md

--mmrec is a clone that knows the data set by the name of the catalog (docs/benchmarks.md); none of its code is here.
iALS (weighted squares) is the one of the package `implicit`. Trained runs are kept in runs/peers and not trained again.
Prints seconds of a training epoch, of the full ranking of the validation users, and until the validation Recall@20 of
EASE is reached, and draws validation Recall@20 against seconds of training and ranking to
docs/pictures/CATALOG-recall-over-time.svg.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, document_parser, one_thread, replace_block, write_picture
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.baselines import Ease
from uatmc_dist.evaluation.comparison import LAMBDAS
from uatmc_dist.evaluation.ranking import Best, rank_lists, rank_model, rank_split
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.runs import RunFolder
from uatmc_dist.tables.markdown import markdown_table

RUNS = Path("runs/peers")
DEFAULT = "configs/default.yaml"
SAME_ARCHITECTURE = [
    "model.user=row",
    "model.initial=random",
    "model.embedding_dim=64",
    "clean.objective=sampled",
    "clean.epochs=5",
    "training.popularity_correction=0",
]
"""VBPR as MMRec has it: rows of users, linear projectors, one sampled negative, no InfoNCE."""
IALS = ((1, 10), (10, 10), (10, 40), (50, 40))
"""(regularisation, alpha) of implicit's AlternatingLeastSquares."""


@dataclass(frozen=True)
class Measured:
    name: str
    train_s: float
    """Of an epoch; of EASE all of it."""
    ranking_s: float
    valid: list[float]
    """Recall@20 after each epoch."""
    test: float
    """At the best of them."""

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(seconds of training and ranking so far, validation Recall@20)."""
        return [((epoch + 1) * (self.train_s + self.ranking_s), recall) for epoch, recall in enumerate(self.valid)]

    def seconds_until(self, recall: float) -> float | None:
        return next((seconds for seconds, value in self.curve if value >= recall), None)


def ours(name: str, catalog: Catalog, overrides: list[str], config: str = DEFAULT) -> Measured:
    run = RUNS / f"{catalog.name}-{name.split(',')[0].replace(' ', '-')}"
    if not RunFolder(run).is_finished:
        where = [f"catalog={catalog.path}", f"output_dir={RUNS}", f"name={run.name}"]
        command = [sys.executable, "train.py", config, *where, *overrides]
        subprocess.run(command, check=True, env=one_thread())
    lines = RunFolder(run).read_metrics()
    steps = [line["step_s"] for line in lines if "step_s" in line]
    valid = [line["valid/recall@20"] for line in lines if "valid/recall@20" in line]
    model = TrainedModel.load(run, catalog)
    batch_size = model.config.training.batch_size
    batches = -(-len(catalog.split("train")[0]) // batch_size)
    since = time.perf_counter()
    rank_model(model, catalog, "valid", model.config.evaluation.users_per_batch)
    ranking_s = time.perf_counter() - since
    test = rank_model(model, catalog, "test", model.config.evaluation.users_per_batch)["recall@20"]
    return Measured(name, statistics.median(steps) * batches, ranking_s, valid, test)


def mmrec(model: str, catalog: Catalog, clone: Path, epochs: int) -> Measured:
    out = (RUNS / f"{catalog.name}-mmrec{'' if model == 'VBPR' else f'-{model}'}.jsonl").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        starter = Path(__file__).with_name("mmrec.py").resolve()
        unfinished = out.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        command = [sys.executable, str(starter), model, catalog.name, str(epochs), str(unfinished)]
        subprocess.run(command, cwd=clone / "src", env=one_thread(), check=True)
        unfinished.replace(out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    best = max(lines, key=lambda line: line["valid"])
    seconds = (statistics.median(line[key] for line in lines) for key in ("train_s", "valid_s"))
    return Measured(f"{model}, MMRec", *seconds, [line["valid"] for line in lines], best["test"])


def by_validation(
    name: str, settings: Iterable[Any], fit: Callable[[Any], Any], recall: Callable[[Any, str], float]
) -> Measured:
    """The best of several settings; all of them are its training. `recall(model, split)` is Recall@20."""
    since, ranking_s, found = time.perf_counter(), 0.0, []
    for setting in settings:
        model = fit(setting)
        start = time.perf_counter()
        found.append((recall(model, "valid"), setting))
        ranking_s = time.perf_counter() - start
    train_s = time.perf_counter() - since - ranking_s
    valid, setting = max(found)
    return Measured(name, train_s, ranking_s, [valid], recall(fit(setting), "test"))


def ease(catalog: Catalog) -> Measured:
    known = KnownPositives.of_training(catalog)
    prepared = cache(lambda: Ease(known, catalog.num_users))  # counted as training, once

    def recall(best: Best, split: str) -> float:
        return rank_lists(best, catalog.split(split), catalog.num_users, catalog.num_items, 256)["recall@20"]

    return by_validation("EASE, three λ", LAMBDAS, lambda weight: prepared().fitted(weight), recall)


def weighted_squares(catalog: Catalog) -> Measured:
    """iALS (Hu, Koren, Volinsky 2008); regularisation and confidence by the validation split."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    users, items = catalog.split("train")
    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), (catalog.num_users, catalog.num_items))
    known, block = KnownPositives.of_training(catalog), ItemBlock(catalog.num_items, 0, 1)

    def fit(setting: tuple[int, int]) -> Any:
        regularisation, alpha = setting
        model = AlternatingLeastSquares(
            factors=128, regularization=regularisation, alpha=alpha, iterations=15, num_threads=1, random_state=0
        )
        model.fit(matrix, show_progress=False)
        return model

    def recall(model: Any, split: str) -> float:
        users_UK, items_NK = map(torch.from_numpy, (model.user_factors, model.item_factors))
        rows_of, pairs = lambda users_B: users_UK[users_B], catalog.split(split)
        return rank_split(rows_of, items_NK, block, known, pairs, catalog.num_users, 1024)["recall@20"]

    return by_validation(f"iALS, {len(IALS)} settings", IALS, fit, recall)


def draw(catalog: Catalog, found: list[Measured]) -> Path:
    import plotly.graph_objects as go

    figure = go.Figure(layout={"title": f"{catalog.name}: validation Recall@20 over time", "template": "plotly_white"})
    for one in found:
        seconds, recall = zip(*one.curve, strict=True)
        figure.add_scatter(x=seconds, y=recall, mode="lines+markers", name=one.name)
    figure.update_xaxes(title="seconds of training and ranking, one thread", type="log")
    figure.update_yaxes(title="Recall@20", rangemode="tozero")
    return write_picture(figure, Path("docs/pictures") / f"{catalog.name}-recall-over-time.svg")


def table(found: list[Measured]) -> str:
    goal = max(found[-1].valid)
    rows = []
    for one in found:
        until = one.seconds_until(goal)
        cells = [one.name, f"{one.train_s:.2f}", f"{one.ranking_s:.2f}", "never" if until is None else f"{until:.0f}"]
        rows.append([*cells, f"{max(one.valid):.4f}", f"{one.test:.4f}"])
    return markdown_table(["", "epoch, s", "full ranking, s", "until EASE's Recall@20, s", "best valid", "test"], rows)


def main() -> None:
    parser = document_parser(__doc__)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--mmrec", type=Path, required=True, help="clone of MMRec")
    parser.add_argument("--epochs", type=int, default=60, help="of MMRec's VBPR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    catalog = Catalog(arguments.catalog)
    found = [
        ours("VBPR, equal architecture", catalog, SAME_ARCHITECTURE),
        mmrec("VBPR", catalog, arguments.mmrec, arguments.epochs),
        ours("default.yaml", catalog, []),
        weighted_squares(catalog),
        ease(catalog),
    ]
    text = table(found)
    print(f"{text}\n\nwritten: {draw(catalog, found)}")
    with (RESULTS.parent / f"peers-{catalog.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "epoch", "seconds", "valid recall@20"])
        for one in found:
            writer.writerows(
                [one.name, epoch, f"{seconds:.2f}", f"{recall:.5f}"]
                for epoch, (seconds, recall) in enumerate(one.curve, start=1)
            )
    if arguments.write is not None:
        replace_block(arguments.write, f"peers-{catalog.name}", text)


if __name__ == "__main__":
    main()
