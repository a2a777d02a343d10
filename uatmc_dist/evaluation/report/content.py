"""Attacks on files in the report: hits by the size of the change, and a gallery of the targets that rose most."""

import base64
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uatmc_dist.evaluation.report.figures import COLOURS, Figure, curve
from uatmc_dist.evaluation.report.sources import RunFiles

_TITLES = {"pixels": "changed pixels", "words": "changed words", "both": "changed pixels and words"}
_AXES = {"pixels": "change of a pixel, in 1/255", "words": "words changed", "both": "change of a pixel, in 1/255"}
_WIDTH = 320
"""Of a photo on the page, in pixels."""


def hits_by_size(runs: Sequence[RunFiles], attack: str) -> Figure:
    """Of every run that was attacked so: the best file, with the certificate of any content above."""
    rows: list[Sequence[Any]] = []
    traces: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        assert run.content_attack is not None
        k = run.content_attack["k"]
        found = [r for r in run.content_attack["results"] if (r["attack"], r["file"]) == (attack, "best file")]
        if not found:
            continue
        before, bound = found[0][f"hit@{k}_before"], found[0][f"certified_hit@{k}_any_content"]
        anything, last = found[0][f"hit@{k}_any_content"], found[-1]["size"]
        certificate = "none" if bound is None else round(bound, 6)
        points = [(0.0, before), *((result["size"], result[f"hit@{k}_after"]) for result in found)]
        traces.append(curve(run.name, points, index))
        for name, level, dash in (("any content", anything, "dot"), ("certificate", bound, "dash")):
            if level is None:  # there is none for this kind of model
                continue
            flat = curve(f"{run.name}: {name}", [(0.0, level), (last, level)], index, dash)
            traces.append(flat | {"mode": "lines", "line": {"dash": dash, "color": COLOURS[index % len(COLOURS)]}})
        rows += [
            (
                run.name,
                r["size"],
                *(round(v, 6) for v in (before, r[f"hit@{k}_after"], anything)),
                certificate,
                r["targets"],
            )
            for r in found
        ]
    return Figure(
        f"Hit rate after {_TITLES[attack]}",
        "Share of anchors who get the target among their best, after the file that helps it most; mean over targets. "
        "Dotted: what any content at all reaches. Dashed: the certificate, which nothing passes.",
        ("run", "size", "before", "after", "any content", "certificate", "targets"),
        rows,
        traces,
        {
            "xaxis": {"title": {"text": _AXES[attack]}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "hit rate, logarithmic"}, "type": "log", "tickformat": ".2~%", "dtick": "D2"},
        },
    )


@dataclass(frozen=True)
class Riser:
    title: str
    hits: str
    ranks: str
    photos: list[tuple[str, str]]
    """(label, data URI)"""
    words: list[tuple[str, str]]
    """(in, out or same; word)"""


def gallery(run: RunFiles) -> list[Riser]:
    """Photos that are gone are left out."""
    assert run.content_attack is not None
    return [
        Riser(
            one["title"],
            f"{one['before']:.2%} → {one['after']:.2%}",
            f"{one['median_rank_before']:,} → {one['median_rank_after']:,}",
            _photos(run.path, one) if "photo_after" in one else [],
            list(marked(one["text_before"], one["text_after"])) if "text_after" in one else [],
        )
        for one in run.content_attack.get("risen", [])
    ]


def marked(before: str, after: str) -> list[tuple[str, str]]:
    """Words of both texts in order: same, in or out."""
    old, new = before.split(), after.split()
    found = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if kind == "equal":
            found += [("same", word) for word in old[i1:i2]]
        else:
            found += [("out", word) for word in old[i1:i2]] + [("in", word) for word in new[j1:j2]]
    return found


def _photos(run: Path, one: dict[str, Any]) -> list[tuple[str, str]]:
    import numpy as np
    from PIL import Image

    from uatmc_dist.encoders.photos import BrokenPhoto, open_photo

    try:
        before, after = open_photo(Path(one["photo_before"])), open_photo(run / one["photo_after"])
    except (OSError, BrokenPhoto):
        return []
    factor = max(1, round(96 / one["pixels"]))
    difference = np.asarray(after, dtype=np.int16) - np.asarray(before, dtype=np.int16)
    amplified = Image.fromarray((128 + factor * difference).clip(0, 255).astype(np.uint8))
    labels = ("before", f"after, ±{one['pixels']:g}/255", f"difference, times {factor}")
    # Means of neighbours would take most of the difference away.
    filters = Image.Resampling.BICUBIC, Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    return [(label, _uri(*shown)) for label, *shown in zip(labels, (before, after, amplified), filters, strict=True)]


def _uri(photo: Any, resampling: Any) -> str:
    photo = photo.copy()
    photo.thumbnail((_WIDTH, 2 * _WIDTH), resampling)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
