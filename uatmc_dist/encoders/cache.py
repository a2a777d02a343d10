"""What encoders said, by a hash of the content: a new photo costs one forward pass, an interruption one batch.

FOLDER/MODALITY-KEY.sqlite    KEY is a hash of the encoder's record; a row: the hash of a content, its float16 features
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash

from uatmc_dist.encoders.base import Encoder
from uatmc_dist.encoders.photos import BrokenPhoto
from uatmc_dist.errors import UserError

Content = TypeVar("Content")
_KEYS_AT_ONCE = 500
_ENCODED_AT_ONCE = 32


def content_hash(content: bytes) -> str:
    """XXH3, 128 bits."""
    return xxhash.xxh3_128_hexdigest(content)


class EncodedContent:
    """Features by content hash, on disk. Raises UserError where the file is damaged or cannot be written."""

    def __init__(self, folder: Path, modality: str, record: dict[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
        self._file = folder / f"{modality}-{key}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._rows = sqlite3.connect(self._file)
            self._rows.execute("PRAGMA journal_mode=WAL")
            self._rows.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, row BLOB) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise self._problem(error) from None

    def _problem(self, error: Exception) -> UserError:
        return UserError(f"{self._file}: cannot be used ({error}); remove it, or free space: it is made again")

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """float16 rows of those that are there."""
        wanted, found = list(dict.fromkeys(keys)), {}
        try:
            for start in range(0, len(wanted), _KEYS_AT_ONCE):
                some = wanted[start : start + _KEYS_AT_ONCE]
                query = f"SELECT key, row FROM features WHERE key IN ({','.join('?' * len(some))})"
                for key, row in self._rows.execute(query, some):
                    found[key] = np.frombuffer(row, dtype=np.float16)
        except sqlite3.Error as error:
            raise self._problem(error) from None
        return found

    def put(self, rows: dict[str, np.ndarray]) -> None:
        """On the disk when it returns."""
        try:
            with self._rows:
                values = [(key, row.tobytes()) for key, row in rows.items()]
                self._rows.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", values)
        except sqlite3.Error as error:
            raise self._problem(error) from None

    def close(self) -> None:
        self._rows.close()


def encode_contents(
    encoder: Encoder[Content],
    kept: EncodedContent,
    keys: Sequence[str],
    load: Callable[[int], Content],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """(float16 features by key, what is wrong with the contents that could not be loaded, by index).

    `keys` are the content hashes; `load(index)` is called for those alone that are not kept yet, once for equal ones.
    """
    found = kept.get(keys)
    first_of = {key: index for index, key in reversed(list(enumerate(keys)))}
    missing = [(key, index) for key, index in first_of.items() if key not in found]
    done = len(first_of) - len(missing)
    broken: dict[str, str] = {}
    progress(done, len(first_of))

    def encoded(batch: Sequence[tuple[str, int]]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(features, what is wrong) by key."""
        loaded: list[tuple[str, Content]] = []
        wrong: dict[str, str] = {}
        for key, index in batch:
            try:
                loaded.append((key, load(index)))
            except BrokenPhoto as error:
                wrong[key] = str(error)
        if not loaded:
            return {}, wrong
        features = encoder.encode([content for _, content in loaded]).numpy().astype(np.float16)
        return {key: row for (key, _), row in zip(loaded, features, strict=True)}, wrong

    at_once = max(encoder.batch, _ENCODED_AT_ONCE)
    # A thread computes alone: threads that share one small operation wait for each other most of the time where the
    # machine has other work, too.
    threads = {"initializer": torch.set_num_threads, "initargs": (1,)} if encoder.batch == 1 else {}
    with ThreadPoolExecutor(encoder.workers, **threads) as pool:
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            batches = [part[first : first + encoder.batch] for first in range(0, len(part), encoder.batch)]
            rows: dict[str, np.ndarray] = {}
            for features, wrong in pool.map(encoded, batches):
                rows |= features
                broken |= wrong
            kept.put(rows)
            found |= rows
            done += len(part)
            progress(done, len(first_of))
    return found, {index: broken[key] for index, key in enumerate(keys) if key in broken}
