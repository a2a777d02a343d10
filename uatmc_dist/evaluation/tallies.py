"""What attacks did, target by target."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
