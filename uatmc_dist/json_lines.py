"""What an interrupted program goes on with: a JSON value a line; a line that was cut off counts for nothing."""

import json
from pathlib import Path
from typing import Any

from uatmc_dist.errors import UserError


def read_lines(path: Path) -> list[Any]:
    """Whole lines alone; none where there is no such file."""
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def add_line(path: Path, value: Any) -> None:
    """Raises UserError where the disk does not take it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            # First, so that a line that was cut off stays a line of its own.
            file.write("\n" * (file.tell() > 0) + json.dumps(value))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space") from None
