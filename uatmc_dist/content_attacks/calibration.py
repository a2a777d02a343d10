"""calibration.json: which epsilon real attacks on files are worth in feature space, and what to train against."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from uatmc_dist.content_attacks.kept import AS_COMPUTED, Record, best_by
from uatmc_dist.content_attacks.suite import MODALITIES_OF

FILE = "calibration.json"
_QUANTILES = (0.1, 0.5, 0.9)
_COVERED = 0.95
_UNSEEN = {"pixels": 1.0, "words": 1}
"""Changes that nobody notices: a pixel by 1/255, a word."""
_AS_GOOD_AS_ANY = 0.5
"""Share of what any content gains from which on a ball around the row says nothing."""
_LEAST_WEIGHT = 0.05
_SHARE = 0.2
"""Of the way towards any content, in training: kept 95 % of the accuracy where it was chosen (docs/results.md)."""


def calibrate(records: Sequence[Record], k: int) -> dict[str, Any]:
    """Of the records of `pixels` and `words`: by size how far rows moved, which share of what any content gains was
    reached, and the smallest radius in which 95 % of the moved rows lie, so that a certificate of that radius covers
    them; then what to train with, each modality weighted by what an unseen change of it is worth."""
    entries = [
        _entry(attack, size, [r for r in written if r["size"] == size], k)
        for attack in ("pixels", "words")
        for written in [_best_files(records, attack)]
        for size in dict.fromkeys(record["size"] for record in written)
    ]
    unseen = [_unseen(entries, attack) for attack in dict.fromkeys(entry["attack"] for entry in entries)]
    has_certificate = any(record["any_content_bound"] is not None for record in records)
    return {"k": k, "covered": _COVERED, "sizes": entries, "recommended": _recommended(unseen, has_certificate)}


def _best_files(records: Sequence[Record], attack: str) -> list[Record]:
    """Of each target and size the file that wins most anchors."""
    written = (r for r in records if r["attack"] == attack and r["file"] not in (None, AS_COMPUTED))
    return best_by(written, "seed", "item", "size")


def _entry(attack: str, size: float, records: Sequence[Record], k: int) -> dict[str, Any]:
    (modality,) = MODALITIES_OF[attack]
    column = lambda name: np.array([record[name] for record in records])  # noqa: E731
    before, after, best = column("before").mean(), column("after").mean(), column("any_content").mean()
    moved = {norm: [record["moved"][f"{modality}_{norm}"] for record in records] for norm in ("l2", "linf")}
    return {
        "attack": attack,
        "modality": modality,
        "size": size,
        "targets": len(records),
        f"hit@{k}_before": float(before),
        f"hit@{k}_after": float(after),
        "share_of_any_content": float((after - before) / (best - before)) if best > before else None,
        "moved": {
            norm: dict(zip(("10%", "median", "90%"), np.quantile(values, _QUANTILES).tolist(), strict=True))
            for norm, values in moved.items()
        },
        # The radius of one of them: between two, fewer would be covered than is said.
        "epsilon": {norm: float(np.quantile(values, _COVERED, method="higher")) for norm, values in moved.items()},
    }


def _unseen(entries: Sequence[dict[str, Any]], attack: str) -> dict[str, Any]:
    """Of an attack the entry of the change that nobody notices; where it was not measured, of the next larger one, or
    of the largest: a modality must not be left out for it."""
    size = _UNSEEN[attack]
    return min(
        (entry for entry in entries if entry["attack"] == attack),
        key=lambda entry: (entry["size"] < size, abs(entry["size"] - size)),
    )


def _recommended(unseen: Sequence[dict[str, Any]], has_certificate: bool) -> dict[str, Any] | None:
    """None where nothing was measured."""
    if not unseen:
        return None
    shares = {entry["modality"]: max(entry["share_of_any_content"] or 0.0, 0.0) for entry in unseen}
    radii = {entry["modality"]: entry["epsilon"]["l2"] for entry in unseen}
    radius = max(radii.values())
    if max(shares.values()) >= _AS_GOOD_AS_ANY or radius >= 1:
        adversary = "certified" if has_certificate else "uat"
        options: dict[str, Any] = {"budget": "any_content", "epsilon": _SHARE, "adversary": adversary}
        options |= _weights(shares)
        why = "a change that nobody sees does much of what any content does, so no ball around the row says anything"
    else:
        options = {"budget": "ball", "norm": "l2", "epsilon": radius, "adversary": "uat"} | _weights(radii)
        why = f"{_COVERED:.0%} of the unseen changes stay within this radius (l2)"
    larger = [f"{e['attack']} of {e['size']:g}" for e in unseen if e["size"] > _UNSEEN[e["attack"]]]
    if larger:
        why += f"; nothing smaller was measured than {' and '.join(larger)}, which may be seen"
    return {"options": options, "why": why, "share_of_any_content": shares}


def _weights(worth: dict[str, float]) -> dict[str, float]:
    """Of both modalities, beside the one that is worth most; 1 where nothing was measured."""
    most = max(worth.values()) or 1.0
    return {
        f"{modality}_weight": ceil(100 * max(value / most, _LEAST_WEIGHT) - 1e-9) / 100
        for modality, value in sorted(worth.items())
    }
