"""What content attacks have done, on disk: a line for each attack and target, so that an interrupted one goes on."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from uatmc_dist.config import AttackConfig, ContentAttackConfig
from uatmc_dist.content_attacks.drawn import Attacked
from uatmc_dist.encoders.photos import BrokenPhoto, open_photo
from uatmc_dist.errors import UserError
from uatmc_dist.json_lines import add_line, read_lines
from uatmc_dist.whole_files import replacing, take_lock

Record = dict[str, Any]
AS_COMPUTED = "as computed"
"""A file that is none: the changed pixels themselves, before they are rounded and written."""

_VERSION = 3
"""Raised with every change of what an attack finds: what older ones found is left alone then."""


_TARGET = ("seed", "attack", "item")


class Kept:
    """Records on disk, a line for each attack and target, and the changed photos beside them; those of other options
    are left alone. One process writes them at a time."""

    def __init__(self, folder: Path, key: str) -> None:
        """Raises UserError where the folder cannot be written, or another process writes."""
        self._path = folder / f"records-{key}.jsonl"
        try:
            photos_folder(folder, key).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); free space, or allow it") from None
        if not take_lock(self._lock):
            self.close()
            raise UserError(f"{self._path}: another process attacks this run; wait until it is done")
        self.records: list[Record] = []
        self.done: set[tuple[Any, ...]] = set()
        for line in read_lines(self._path):
            if is_whole(line) and (target := tuple(line[0][name] for name in _TARGET)) not in self.done:
                self.done.add(target)
                self.records += line

    def close(self) -> None:
        os.close(self._lock)

    def add(self, records: list[Record]) -> None:
        """Of one target: a line."""
        add_line(self._path, records)
        self.records += records

    def of(self, seed: int, attack: str, item: int) -> list[Record]:
        return [r for r in self.records if (r["seed"], r["attack"], r["item"]) == (seed, attack, item)]


def is_whole(line: Any) -> bool:
    """Whether a line of a file is what `Kept.add` writes: records of one attack on one target."""
    return (
        isinstance(line, list)
        and bool(line)
        and all(isinstance(record, dict) and {*_TARGET, "file"} <= record.keys() for record in line)
        and len({tuple(record[name] for name in _TARGET) for record in line}) == 1
    )


def key_of(config: ContentAttackConfig, attack: AttackConfig, popular: dict[str, int], seen: Sequence[Attacked]) -> str:
    """Of what a record depends on besides its seed, target and attack: options, the items that are copied, and the
    models that are `seen`, with their catalogs."""
    options = config.model_dump(mode="json", exclude={"attacks", "seeds", "surrogate"})
    models = [[one.catalog.digest, one.digest] for one in seen]
    words = json.dumps([_VERSION, options, attack.k, attack.anchor_share, popular, models])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def photos_folder(folder: Path, key: str) -> Path:
    return folder / f"photos-{key}"


def save_photo(photo: Image.Image, file: Path) -> None:
    """Raises UserError where it cannot be written."""
    try:
        with replacing(file) as unfinished:
            photo.save(unfinished, "PNG")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); free space, or allow it") from None


def changed_photo(file: Path) -> Image.Image:
    """UserError where somebody has taken it away."""
    try:
        return open_photo(file)
    except (FileNotFoundError, BrokenPhoto):
        records = file.parent.name.replace("photos-", "records-") + ".jsonl"
        raise UserError(f"{file}: gone or broken; remove {file.parent.parent / records} and attack again") from None


def best_by(records: Iterable[Record], *keys: str) -> list[Record]:
    """Of those that are equal in these keys the one that wins most anchors, the first of equals."""
    best: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = tuple(record[name] for name in keys)
        if key not in best or record["after"] > best[key]["after"]:
            best[key] = record
    return list(best.values())
