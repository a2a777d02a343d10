"""The features of a catalog: what encoders say of its photos and texts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uatmc_dist.data.building.articles import Articles
from uatmc_dist.data.building.options import BuildOptions
from uatmc_dist.encoders.base import Encoder
from uatmc_dist.encoders.cache import EncodedContent, content_hash, encode_contents
from uatmc_dist.encoders.photos import open_photo_bytes
from uatmc_dist.errors import UserError

_NAMED = 10

Shown = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass
class Features:
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    """float16 [N, width] by modality; zero rows where an item has nothing to encode."""
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How they were made, by modality."""
    contents: dict[str, list[str | None]] = field(default_factory=dict)
    """Columns by item: what was encoded, and from which an attack on photos and texts starts."""
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Contents:
    """Those of one modality, of the items `places`."""

    modality: str
    places: list[int]
    hashes: list[str]
    load: Callable[[int], Any]


def encode_articles(
    cache: Path, options: BuildOptions, articles: Articles, shown: Shown | None, say: Callable[[str], None]
) -> Features:
    """Broken photos are told to `say`. Raises UserError where nothing of a modality can be encoded, or an encoder
    cannot be had."""
    from uatmc_dist.encoders.text import open_text_encoder
    from uatmc_dist.encoders.visual import open_visual_encoder

    made = Features()
    texts = None if articles.texts is None else _texts(articles.texts, options)
    if articles.photos is not None:
        files = [None if path is None else options.photo_root / path for path in articles.photos]
        photos, paths = _photos(files)
        broken = _encode(made, open_visual_encoder(options.visual_encoder, options.device), photos, cache, files, shown)
        for index, why in list(broken.items())[:_NAMED]:
            say(f"broken photo, a row of zeros instead: {paths[index]}: {why}")
        if len(broken) > _NAMED:
            say(f"... and {len(broken) - _NAMED:,} more broken photos")
        if broken:
            made.notes["broken_photos"] = len(broken)
        unseen = {photos.places[index] for index in broken}
        made.contents["photo"] = [
            None if file is None or place in unseen else str(file.resolve()) for place, file in enumerate(files)
        ]
        by_place = dict(zip(photos.places, photos.hashes, strict=True))
        made.contents["photo_xxh3"] = [by_place.get(place) for place in range(len(files))]
    if texts is not None and articles.texts is not None:
        encoder = open_text_encoder(options.text_encoder, options.device)
        _encode(made, encoder, texts, cache, articles.texts, shown)
        made.contents["text"] = list(articles.texts)
    return made


def _photos(files: Sequence[Path | None]) -> tuple[_Contents, list[Path]]:
    found = [(place, file) for place, file in enumerate(files) if file is not None]
    places, paths = [place for place, _ in found], [file for _, file in found]
    hashes = [content_hash(_bytes(file)) for file in paths]
    return _Contents("visual", places, hashes, lambda index: open_photo_bytes(_bytes(paths[index]))), paths


def _bytes(file: Path) -> bytes:
    """None of a file that cannot be read, which is a broken photo then."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _texts(texts: list[str], options: BuildOptions) -> _Contents:
    places = [place for place, text in enumerate(texts) if text]
    if not places:
        raise UserError(f"{options.items}: all texts are empty; choose others with --text-columns")
    hashes = [content_hash(texts[place].encode()) for place in places]
    return _Contents("text", places, hashes, lambda index: texts[places[index]])


def _encode(
    made: Features, encoder: Encoder[Any], contents: _Contents, cache: Path, items: Sequence[Any], shown: Shown | None
) -> dict[int, str]:
    """Adds the rows of one modality; returns what is wrong with its contents, by index."""
    what = {"visual": "photos", "text": "texts"}[contents.modality]
    kept = EncodedContent(cache, contents.modality, encoder.record)
    with shown(what) if shown is not None else nullcontext(lambda done, total: None) as progress:
        found, broken = encode_contents(encoder, kept, contents.hashes, contents.load, progress)
    kept.close()
    if not found:
        raise UserError(
            f"none of the {len(contents.hashes):,} {what} can be encoded ({next(iter(broken.values()), '')})"
        )
    rows = np.zeros((len(items), len(next(iter(found.values())))), dtype=np.float16)
    for place, key in zip(contents.places, contents.hashes, strict=True):
        if key in found:
            rows[place] = found[key]
    made.rows[contents.modality] = rows
    made.records[contents.modality] = {**encoder.record, "width": rows.shape[1]}
    return broken
