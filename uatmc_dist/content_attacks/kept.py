"""What content attacks have done, on disk: a line for each attack and target, so that an interrupted one goes on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uatmc_dist.errors import UserError

Record = dict[str, Any]


class Kept:
    """Records on disk, a line each; those of other options are left alone."""

    def __init__(self, folder: Path, key: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); free space") from None
        self._path = folder / f"records-{key}.jsonl"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        whole = [line for line in lines if _is_json(line)]
        if len(whole) < len(lines):  # interrupted in the middle of one
            self._path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
        self.records: list[Record] = [record for line in whole for record in json.loads(line)]
        self.done = {(record["seed"], record["attack"], record["item"]) for record in self.records}

    def add(self, records: list[Record]) -> None:
        """Of one target: a line."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records) + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); free space") from None
        self.records += records

    def of(self, seed: int, attack: str, item: int) -> list[Record]:
        return [r for r in self.records if (r["seed"], r["attack"], r["item"]) == (seed, attack, item)]


def best_by(records: Iterable[Record], *keys: str) -> list[Record]:
    """Of those that are equal in these keys the one that wins most anchors, the first of equals."""
    best: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = tuple(record[name] for name in keys)
        if key not in best or record["after"] > best[key]["after"]:
            best[key] = record
    return list(best.values())


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
