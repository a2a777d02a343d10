"""What attacks did, target by target; scene by scene on disk as long as an attack goes on, so that an interrupted one
resumes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.kept import digest_of
from uatmc_dist.json_lines import add_line, read_lines

Epsilon = float | None
"""None: any content."""


@dataclass
class Tally:
    """What one attack at one epsilon did to the targets of one stratum, target by target, seeds one after the other."""

    after: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """Hits by length of ranking."""
    rank_after: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    def extend(self, other: "Tally") -> None:
        _extend(self.after, other.after)
        self.rank_after += other.rank_after
        self.seconds += other.seconds


@dataclass
class Stratum:
    before: dict[int, list[np.ndarray]] = field(default_factory=dict)
    rank_before: list[np.ndarray] = field(default_factory=list)
    certified: dict[Epsilon, list[np.ndarray]] = field(default_factory=dict)
    tallies: dict[tuple[str, Epsilon], Tally] = field(default_factory=dict)
    restarts: dict[Epsilon, list[np.ndarray]] = field(default_factory=dict)
    """APGD's mean hits after each start."""

    def extend(self, other: "Stratum") -> None:
        """By what was found with another seed."""
        _extend(self.before, other.before)
        self.rank_before += other.rank_before
        _extend(self.certified, other.certified)
        for key, tally in other.tallies.items():
            self.tallies.setdefault(key, Tally()).extend(tally)
        _extend(self.restarts, other.restarts)

    def to_json(self) -> dict[str, Any]:
        tallies = [
            [name, epsilon, _pairs(tally.after), _lists(tally.rank_after), tally.seconds]
            for (name, epsilon), tally in self.tallies.items()
        ]
        return {
            "before": _pairs(self.before),
            "rank_before": _lists(self.rank_before),
            "certified": _pairs(self.certified),
            "tallies": tallies,
            "restarts": _pairs(self.restarts),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Stratum":
        tallies = {
            (name, epsilon): Tally(_of_pairs(after), _arrays(ranks), seconds)
            for name, epsilon, after, ranks, seconds in found["tallies"]
        }
        before, certified, restarts = (_of_pairs(found[name]) for name in ("before", "certified", "restarts"))
        return cls(before, _arrays(found["rank_before"]), certified, tallies, restarts)


class KeptScenes:
    """Finished (seed, stratum) of an attack, a line each."""

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        """`path` None: nothing is kept. `writes`: whether this rank writes; all of them read."""
        self._path, self._writes = path, writes
        lines = [] if path is None else read_lines(path)
        self.done = {(seed, stratum): Stratum.from_json(found) for seed, stratum, found in lines}

    @classmethod
    def of_run(
        cls, run: Path, catalog: Catalog, config: AttackConfig, surrogate: Path | None, writes: bool = True
    ) -> "KeptScenes":
        """Those of the same model, catalog, options and surrogate."""
        runs = [folder for folder in (run, surrogate) if folder is not None]
        return cls(run / f"attack-{digest_of(runs, catalog, config.model_dump(mode='json'))}.jsonl", writes)

    def add(self, seed: int, stratum: str, found: Stratum) -> None:
        if self._path is not None and self._writes:
            add_line(self._path, [seed, stratum, found.to_json()])

    def drop(self) -> None:
        """Once attack.json holds all of it; what other options left goes, too."""
        if self._path is not None and self._writes:
            for file in self._path.parent.glob("attack-*.jsonl"):
                file.unlink()


def _extend(of: dict[Any, list[np.ndarray]], by: dict[Any, list[np.ndarray]]) -> None:
    for key, values in by.items():
        of.setdefault(key, []).extend(values)


def _lists(arrays: Iterable[np.ndarray]) -> list[list[float]]:
    return [array.tolist() for array in arrays]


def _arrays(lists: Iterable[list[float]]) -> list[np.ndarray]:
    return [np.array(values, dtype=np.float64) for values in lists]


def _pairs(by_key: dict[Any, list[np.ndarray]]) -> list[list[Any]]:
    """JSON knows keys of text alone."""
    return [[key, _lists(arrays)] for key, arrays in by_key.items()]


def _of_pairs(pairs: list[list[Any]]) -> dict[Any, list[np.ndarray]]:
    return {key: _arrays(lists) for key, lists in pairs}
