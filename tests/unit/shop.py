"""A shop's own files: orders, articles, photos."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ITEMS = [f"0{100 + item}" for item in range(9)]
USERS = [f"user {letter}" for letter in "abcdefghijkl"]


def orders() -> list[tuple[str, str, int]]:
    """(user, item, day since 1970), six of each user, in no order of time."""
    rng = np.random.default_rng(3)
    rows = []
    for user in USERS:
        bought = rng.permutation(len(ITEMS))[:6]
        rows += [(user, ITEMS[item], 18000 + int(day)) for item, day in zip(bought, rng.permutation(6), strict=True)]
    return rows


def date(day: int) -> str:
    return str(np.datetime64(day, "D"))


def write_csv(path: Path, header: list[str], rows: list, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, header: list[str], rows: list) -> Path:
    path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    return path


def write_parquet(path: Path, header: list[str], rows: list) -> Path:
    columns = zip(*rows, strict=True)
    pq.write_table(pa.table({name: list(column) for name, column in zip(header, columns, strict=True)}), path)
    return path


def write_photos(folder: Path, items=ITEMS) -> Path:
    rng = np.random.default_rng(5)
    for index, item in enumerate(items):
        path = folder / item[:3] / f"{item}{('.png', '.jpg', '.webp', '.JPEG')[index % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return folder


def write_shop(folder: Path) -> dict[str, Path]:
    """Orders, articles and photos; the options of `uatmc data build` by name."""
    folder.mkdir(parents=True, exist_ok=True)
    articles = [(item, f'Name "{item}"', f"Long, and\nin two lines {item}", "red") for item in ITEMS]
    return {
        "interactions": write_csv(
            folder / "orders.csv",
            ["t_dat", "customer_id", "article_id", "price"],
            [(date(day), user, item, 1.5) for user, item, day in orders()],
        ),
        "items": write_csv(folder / "articles.csv", ["article_id", "prod_name", "detail_desc", "colour"], articles),
        "photos": write_photos(folder / "photos"),
    }
