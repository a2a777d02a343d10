"""A small data set in the MMRec convention, to be spoilt in many ways."""

from pathlib import Path

import numpy as np


def write_source(folder: Path, users=12, items=9, widths=(6, 4), dtype=np.float32, seed=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        chosen = rng.permutation(items)[:5]
        chosen[0] = user % items  # every item occurs
        chosen = list(dict.fromkeys(chosen.tolist()))
        labels = [0] * (len(chosen) - 2) + [1, 2]
        rows += [(user, item, label) for item, label in zip(chosen, labels, strict=True)]
    write_inter(folder, rows)
    for name, width in zip(("image", "text"), widths, strict=True):
        np.save(folder / f"{name}_feat.npy", rng.standard_normal((items, width)).astype(dtype))
    return folder


def read_inter(folder: Path) -> list[tuple[int, int, int]]:
    lines = (folder / "shop.inter").read_text().splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    return [(int(user), int(item), int(label)) for user, item, _, label in cells]


def write_inter(folder: Path, rows: list[tuple], header="userID\titemID\ttimestamp\tx_label") -> None:
    lines = [f"{user}\t{item}\t{index * 100}\t{label}" for index, (user, item, label) in enumerate(rows)]
    (folder / "shop.inter").write_text("\n".join([header, *lines]) + "\n")
