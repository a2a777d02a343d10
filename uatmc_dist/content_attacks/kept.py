"""What content attacks have done, on disk: a line for each attack and target, so that an interrupted one goes on."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from uatmc_dist.config import AttackConfig, ContentAttackConfig
from uatmc_dist.content_attacks.drawn import Attacked
from uatmc_dist.encoders.photos import BrokenPhoto, open_photo
from uatmc_dist.errors import UserError
from uatmc_dist.json_lines import add_line, read_lines

Record = dict[str, Any]
AS_COMPUTED = "as computed"
"""A file that is none: the changed pixels themselves, before they are rounded and written."""

_VERSION = 2
"""Raised with every change of what an attack finds: what older ones found is left alone then."""


class Kept:
    """Records on disk, a line each; those of other options are left alone."""

    def __init__(self, folder: Path, key: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); free space") from None
        self._path = folder / f"records-{key}.jsonl"
        self.records: list[Record] = [record for line in read_lines(self._path) for record in line]
        self.done = {(record["seed"], record["attack"], record["item"]) for record in self.records}

    def add(self, records: list[Record]) -> None:
        """Of one target: a line."""
        add_line(self._path, records)
        self.records += records

    def of(self, seed: int, attack: str, item: int) -> list[Record]:
        return [r for r in self.records if (r["seed"], r["attack"], r["item"]) == (seed, attack, item)]


def key_of(config: ContentAttackConfig, attack: AttackConfig, popular: int, seen: Sequence[Attacked]) -> str:
    """Of what a record depends on besides its seed, target and attack: options, the item that is copied, and the models
    that are `seen`, with their catalogs."""
    options = config.model_dump(mode="json", exclude={"attacks", "seeds", "surrogate"})
    sums = [
        [one.catalog.digest, float(one.model.users_UK.double().sum()), float(one.model.items().double().abs().sum())]
        for one in seen
    ]
    words = json.dumps([_VERSION, options, attack.k, attack.anchor_share, popular, sums])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def changed_photo(file: Path) -> Image.Image:
    """UserError where somebody has taken it away."""
    try:
        return open_photo(file)
    except (FileNotFoundError, BrokenPhoto):
        raise UserError(f"{file}: gone or broken; remove {file.parent.parent} and attack again") from None


def best_by(records: Iterable[Record], *keys: str) -> list[Record]:
    """Of those that are equal in these keys the one that wins most anchors, the first of equals."""
    best: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = tuple(record[name] for name in keys)
        if key not in best or record["after"] > best[key]["after"]:
            best[key] = record
    return list(best.values())
