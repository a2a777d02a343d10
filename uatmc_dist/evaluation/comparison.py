"""A model beside the baselines of its catalog: their figures, kept in the catalog, and what the model is below.

CATALOG/baselines/SPLIT.json    {"catalog": digest of catalog.json, "figures": {name: {"recall@20": ..., ...}}}
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import BASELINES, MODALITIES, Catalog
from uatmc_dist.evaluation.baselines import Ease, Nearest, at_random, most_popular
from uatmc_dist.evaluation.beyond import BEYOND, BeyondAccuracy
from uatmc_dist.evaluation.ranking import Best, Progress, rank_lists
from uatmc_dist.whole_files import replacing

Figures = dict[str, Any]
Shown = Callable[[str], AbstractContextManager[Progress]]

TITLES = {
    "random": "random",
    "popularity": "popularity",
    "knn_visual": "photo kNN",
    "knn_text": "text kNN",
    "knn_both": "photo and text kNN",
    "ease": "EASE",
    "bpr_mf": "BPR-MF",
}
"""What a person reads for each baseline, in the order of the tables."""
LAMBDAS = (100.0, 200.0, 500.0)
"""Of EASE; the one with the best recall@20 on the validation split is taken."""
EASE_UP_TO = 20_000
"""Items; N x N matrices of more would need too much memory."""
EVALUATE_WITHIN_S, TRAINING_WITHIN_S = 1800.0, 60.0
"""How long `uatmc evaluate` and the end of a training may take for baselines that the catalog does not have yet."""
_PRODUCTS_PER_S = 1e10
"""Multiply-adds of one CPU core, for estimates of time."""
_USERS_AT_A_TIME, _USERS_OF_EASE = 2048, 256
_LOG = logging.getLogger("uatmc_dist")


@dataclass(frozen=True)
class Comparison:
    """One model beside the baselines, by one metric on one split."""

    metric: str
    split: str
    value: float
    figures: dict[str, Figures]
    left_out: dict[str, str]
    """Why a baseline has no figures."""
    slow: list[str] = field(default_factory=list)
    """Those of `left_out` that only wait for a command with more time."""

    @property
    def below(self) -> list[str]:
        """Baselines that the model does not reach, the best first."""
        return below(self.value, self.figures, self.metric)

    def verdict(self) -> str:
        """One line for the user; what it says of a failure comes with what to try."""
        measured = f"{self.metric} {self.value:.4f} on the {self.split} split"
        if not self.figures:
            return f"{measured}; no baseline has been measured yet"
        shown = {name: f"{TITLES[name]} ({values[self.metric]:.4f})" for name, values in self.figures.items()}
        if missed := self.below:
            names = ", ".join(shown[name] for name in missed)
            return f"below {names}: {measured}; try configs/default.yaml, or uatmc tune"
        best = max(self.figures, key=lambda name: self.figures[name][self.metric])
        return f"not below any of {len(shown)} baselines, the best of which is {shown[best]}: {measured}"

    def notes(self) -> list[str]:
        """How the baselines with options were made."""
        notes = []
        if ease := self.figures.get("ease"):
            notes.append(f"EASE: lambda {ease['lambda']:g}, the best of {len(LAMBDAS)} on the valid split")
        if bpr_mf := self.figures.get("bpr_mf"):
            notes.append(f"BPR-MF: {bpr_mf['run']}")
        return notes

    def gaps(self) -> list[str]:
        """One line for each baseline that was left out."""
        return [f"{TITLES[name]} is left out: {why}" for name, why in self.left_out.items()]


def below(value: float, figures: dict[str, Figures], metric: str) -> list[str]:
    """Names of the baselines with a higher figure, the best first."""
    missed = [name for name, values in figures.items() if value < values[metric]]
    return sorted(missed, key=lambda name: -figures[name][metric])


def to_json(catalog: Catalog, figures: Figures, compared: Comparison) -> dict[str, Any]:
    """evaluation.json: the model's figures, then what it was compared with."""
    return {
        "split": compared.split,
        **figures,
        "catalog": {"name": catalog.name, "digest": catalog.digest},
        "metric": compared.metric,
        "baselines": compared.figures,
        "left_out": compared.left_out,
        "below": compared.below,
    }


def together(
    evaluations: Mapping[Path, dict[str, Any]],
) -> list[tuple[str, dict[str, Figures], dict[Path, Comparison]]]:
    """Runs that were evaluated on the same catalog and split: (name of both, the baselines that any of them was
    compared with, each run beside these). `evaluations`: evaluation.json of each run; older ones have no baselines."""
    groups: dict[tuple[str, str], dict[Path, dict[str, Any]]] = {}
    for run, found in evaluations.items():
        key = found["split"], found.get("catalog", {}).get("digest", "")
        groups.setdefault(key, {})[run] = found
    made = []
    for (split, _), members in groups.items():
        merged: dict[str, Figures] = {}
        for found in members.values():
            for name, values in found.get("baselines", {}).items():
                if name not in merged or merged[name]["recall@20"] < values["recall@20"]:
                    merged[name] = values
        baselines = {name: merged[name] for name in TITLES if name in merged}
        compared = {}
        for run, found in members.items():
            others = {name: values for name, values in baselines.items() if values.get("run") != str(run.resolve())}
            metric = found.get("metric", "recall@20")
            compared[run] = Comparison(metric, split, found[metric], others, found.get("left_out", {}))
        name = next(iter(members.values())).get("catalog", {}).get("name", "unknown catalog")
        made.append((f"{name}, {split}", baselines, compared))
    return made


class Baselines:
    """Measures the baselines of a catalog, or reads what an earlier command measured.

    `shown(what)` gives the progress callback of each piece of work.
    """

    def __init__(self, catalog: Catalog, shown: Shown = lambda what: nullcontext(lambda done, total: None)) -> None:
        self._catalog, self._shown = catalog, shown
        self._digest = catalog.digest
        self._known = KnownPositives.of_training(catalog)
        self._ease: Ease | None = None
        self._is_kept = True

    def compare(self, metric: str, split: str, value: float, run: Path, within_s: float) -> Comparison:
        """The model of `run` beside the baselines; a BPR-MF of the same run is no baseline of itself.

        What is not in the catalog yet is measured, the quick ones first, as long as all together seem to take no more
        than `within_s` seconds.
        """
        found, left_out, slow, spent = self._read(split), {}, [], 0.0
        for name, seconds in sorted(self._costs(split).items(), key=lambda entry: entry[1]):
            if name in found:
                continue
            if name == "ease" and self._catalog.num_items > EASE_UP_TO:
                left_out[name] = f"{self._catalog.num_items:,} items are more than {EASE_UP_TO:,}"
            elif spent + seconds > within_s:
                left_out[name] = f"it would take about {max(seconds / 60, 1):,.0f} minutes"
                slow.append(name)
            else:
                spent += seconds
                found[name] = self._measured(name, split)
                self._keep(split, name, found[name])
        if found.get("bpr_mf", {}).get("run") == str(run.resolve()):
            del found["bpr_mf"]
        figures = {name: found[name] for name in TITLES if name in found}
        return Comparison(metric, split, value, figures, left_out, slow)

    def record_bpr_mf(self, split: str, figures: Figures, run: Path) -> None:
        """Keeps what a run without content reached, beside which later models are shown; of several runs the best."""
        before = self._read(split).get("bpr_mf")
        if before is None or before["run"] == str(run.resolve()) or before["recall@20"] < figures["recall@20"]:
            self._keep(split, "bpr_mf", {**figures, "run": str(run.resolve())})

    def _costs(self, split: str) -> dict[str, float]:
        """Estimated seconds of each baseline that the catalog can have."""
        num_users, num_items = len(np.unique(self._catalog.split(split)[0])), self._catalog.num_items
        widths = {name: features.width for name, features in self._catalog.features.items() if name in MODALITIES}
        costs = {"random": num_users * 4e-5, "popularity": num_users * 4e-5}
        kinds = {f"knn_{name}": width for name, width in widths.items()}
        if len(widths) > 1:
            kinds["knn_both"] = sum(widths.values())
        scores, per_s = num_users * num_items, _PRODUCTS_PER_S * torch.get_num_threads()
        costs |= {name: scores * (width + 150) / per_s for name, width in kinds.items()}
        one = (num_items**3 + 250 * scores) / per_s
        to_choose = 0 if "ease" in self._read("valid") else len(LAMBDAS)
        costs["ease"] = one * (to_choose + (split != "valid"))
        return costs

    def _measured(self, name: str, split: str) -> Figures:
        if name == "ease":
            return self._measured_ease(split)
        with self._shown(f"{TITLES[name]}: users") as progress:
            if name == "random":
                best = at_random(self._known, self._catalog.num_users)
            elif name == "popularity":
                best = most_popular(self._catalog, self._known)
            else:
                modalities = MODALITIES if name == "knn_both" else (name.removeprefix("knn_"),)
                best = Nearest(self._catalog, modalities, self._known)
            return self._ranked(best, split, _USERS_AT_A_TIME, progress)

    def _measured_ease(self, split: str) -> Figures:
        """With the lambda that is best on the validation split, never on the one that is reported."""
        self._ease = self._ease or Ease(self._known, self._catalog.num_users)
        chosen = self._read("valid").get("ease")
        if chosen is None:
            chosen = max((self._fitted(weight, "valid") for weight in LAMBDAS), key=lambda found: found["recall@20"])
            self._keep("valid", "ease", chosen)
        return chosen if split == "valid" else self._fitted(chosen["lambda"], split)

    def _fitted(self, weight: float, split: str) -> Figures:
        assert self._ease is not None
        with self._shown(f"EASE, lambda {weight:g}, {split}: users") as progress:
            best = self._ease.fitted(weight)
            return {**self._ranked(best, split, _USERS_OF_EASE, progress), "lambda": weight}

    def _ranked(self, best: Best, split: str, users_at_a_time: int, progress: Progress) -> Figures:
        beyond, sizes = BeyondAccuracy(self._catalog, split), (self._catalog.num_users, self._catalog.num_items)
        metrics = rank_lists(best, self._catalog.split(split), *sizes, users_at_a_time, progress, beyond.add)
        return {**metrics, **beyond.metrics()}

    # The cache

    def _file(self, split: str) -> Path:
        return self._catalog.path / BASELINES / f"{split}.json"

    def _read(self, split: str) -> dict[str, Figures]:
        """Empty where nothing whole is there, or what is there was measured on another catalog."""
        try:
            kept = json.loads(self._file(split).read_text(encoding="utf-8"))
            figures = kept["figures"] if kept["catalog"] == self._digest else {}
            return {name: values for name, values in figures.items() if {"recall@20", *BEYOND} <= values.keys()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return {}

    def _keep(self, split: str, name: str, figures: Figures) -> None:
        """Whole or not at all; nothing where the catalog cannot be written."""
        if not self._is_kept:
            return
        file = self._file(split)
        values = {"catalog": self._digest, "figures": {**self._read(split), name: figures}}
        try:
            file.parent.mkdir(exist_ok=True)
            with replacing(file) as unfinished:
                unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            _LOG.warning(f"{file.parent}: baselines are not kept ({error.strerror}), so the next command measures anew")
            self._is_kept = False
