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
_SIZES = {"linf": "change of a pixel, in 1/255", "l2": "root mean square of the change of pixels, in 1/255"}
_WIDTH = 320
"""Of a photo on the page, in pixels."""


def hits_by_size(runs: Sequence[RunFiles], attack: str) -> Figure:
    """Of every run that was attacked so, under the protocol of the first: the best file, with the certificate of any
    content above."""
    rows: list[Sequence[Any]] = []
    traces: list[dict[str, Any]] = []
    attacked = [run for run in runs if any(r["attack"] == attack for r in _report(run)["results"])]
    shown = [run for run in attacked if _protocol(run, attack) == _protocol(attacked[0], attack)]
    others = [run.name for run in attacked if run not in shown]
    k, norm = (_report(shown[0])["k"], _report(shown[0])["options"]["norm"]) if shown else (0, "linf")
    for index, run in enumerate(shown):
        found = [r for r in _report(run)["results"] if (r["attack"], r["file"]) == (attack, "best file")]
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
        f"Hit@{k} after {_TITLES[attack]}",
        f"Share of anchors who get the target among their {k} best, after the file that helps it most; mean over "
        "targets. Dotted: what any content at all reaches. Dashed: the certificate, which nothing passes."
        + (f" Left out, as measured under another protocol: {', '.join(others)}." if others else ""),
        ("run", "size", "before", "after", "any content", "certificate", "targets"),
        rows,
        traces,
        {
            "xaxis": {
                "title": {"text": "words changed" if attack == "words" else _SIZES[norm]},
                "rangemode": "tozero",
            },
            "yaxis": {"title": {"text": "hit rate, logarithmic"}, "type": "log", "tickformat": ".2~%", "dtick": "D2"},
        },
    )


def _report(run: RunFiles) -> dict[str, Any]:
    assert run.content_attack is not None
    return run.content_attack


def _protocol(run: RunFiles, attack: str) -> tuple[Any, ...]:
    """What two runs must have in common for their hits to be compared."""
    options = _report(run)["options"]
    names = ["seeds", "num_targets", *(["same_kind"] if attack != "pixels" else [])]
    names += ["norm", "steps", "losses", "restarts", "formats"] if attack != "words" else []
    return (_report(run)["k"], *(options.get(name) for name in names))


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
    """Photos that are gone, or others by now, are left out."""
    return [
        Riser(
            one["title"],
            f"{one['before']:.2%} → {one['after']:.2%}",
            f"{one['median_rank_before']:,} → {one['median_rank_after']:,}",
            _photos(run.path, one, _report(run)["options"]["norm"]) if "photo_after" in one else [],
            list(marked(one["text_before"], one["text_after"])) if "text_after" in one else [],
        )
        for one in _report(run).get("risen", [])
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


def _photos(run: Path, one: dict[str, Any], norm: str) -> list[tuple[str, str]]:
    import numpy as np
    from PIL import Image

    from uatmc_dist.encoders.cache import content_hash
    from uatmc_dist.encoders.photos import BrokenPhoto, open_photo, open_photo_bytes

    try:
        uploaded = Path(one["photo_before"]).read_bytes()
        if content_hash(uploaded) != one["photo_xxh3"]:
            return []
        before, after = open_photo_bytes(uploaded), open_photo(run / one["photo_after"])
    except (OSError, BrokenPhoto, KeyError):
        return []
    factor = max(1, round(96 / one["pixels"]))
    difference = np.asarray(after, dtype=np.int16) - np.asarray(before, dtype=np.int16)
    amplified = Image.fromarray((128 + factor * difference).clip(0, 255).astype(np.uint8))
    size = f"±{one['pixels']:g}/255" if norm == "linf" else f"root mean square {one['pixels']:g}/255"
    labels = ("before", f"after, {size}", f"difference, times {factor}")
    # Means of neighbours would take most of the difference away.
    filters = Image.Resampling.BICUBIC, Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    return [(label, _uri(*shown)) for label, *shown in zip(labels, (before, after, amplified), filters, strict=True)]


def _uri(photo: Any, resampling: Any) -> str:
    photo = photo.copy()
    photo.thumbnail((_WIDTH, 2 * _WIDTH), resampling)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
