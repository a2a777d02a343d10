"""The on-disk catalog: interactions and items in Parquet, feature blocks in memory-mapped Arrow files.

catalog.json            format, sizes, counts, checksums, and for each modality: file, width, dtype, encoder
interactions.parquet    user int64, item int64, timestamp int64, split (0 train, 1 valid, 2 test)
items.parquet           item id of the source, title; of a built catalog also text, photo (its path) and photo_xxh3
users.parquet           user id of the source; of a built catalog
features/NAME.arrow     one record batch a block of rows, fixed-size lists of float16 or float32
encoded/                a cache: features by content hash (encoders/cache.py)
projected/              a cache: projected features of some trained models (models/projected.py)
training/               a cache: training items of every user, for memory mapping (data/batches.py)
baselines/              a cache: figures of the baselines by split (evaluation/comparison.py)
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from uatmc_dist.checksums import CheckedFile
from uatmc_dist.errors import UserError

FORMAT = "uatmc-catalog"
VERSION = 1
SPLITS = ("train", "valid", "test")
MODALITIES = ("visual", "text")
PROJECTED = "projected"
"""Folder of what models/projected.py keeps beside the features."""
TRAINING = "training"
"""Folder of the memory-mapped training items of every user (data/batches.py)."""
BASELINES = "baselines"
"""Folder of what evaluation/comparison.py keeps."""
_MEND = "make the catalog again"
INTERACTIONS = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("timestamp", pa.int64()), ("split", pa.int8())])


@dataclass
class Interactions:
    """Parallel arrays, one entry an interaction."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    splits: np.ndarray
    """Index into SPLITS."""

    def __len__(self) -> int:
        return len(self.users)


class FeatureFile:
    """Rows of one modality, memory-mapped; only the rows that are asked for are read."""

    def __init__(self, path: Path, encoder: str, sums: Sequence[str]) -> None:
        self.path, self.encoder = path, encoder
        self._checked = CheckedFile(path, sums, _MEND)
        self._checked.check(0, 1)  # schema and footer
        self._checked.check(path.stat().st_size - 1)
        self._pages, self._reader = _opened(path, lambda: _mapped(path))
        kind = self._reader.schema.field(0).type
        self.width: int = kind.list_size
        self.dtype = np.dtype(kind.value_type.to_pandas_dtype())
        self._blocks = [self._block(index) for index in range(self._reader.num_record_batches)]
        self._address = np.frombuffer(self._pages, np.uint8).__array_interface__["data"][0]
        self._starts = np.cumsum([0] + [len(block) for block in self._blocks])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _block(self, index: int) -> np.ndarray:
        values = self._reader.get_batch(index).column(0).values
        return values.to_numpy(zero_copy_only=True).reshape(-1, self.width)

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows block by block, in the stored dtype, without a copy."""
        for block in range(len(self._blocks)):
            yield self._checked_block(block)

    def _checked_block(self, index: int) -> np.ndarray:
        block = self._blocks[index]
        first = block.__array_interface__["data"][0] - self._address
        self._checked.check(first, first + block.nbytes)
        return block

    def release(self) -> None:
        """Gives the pages that were read back to the system: after a pass over all rows they would count as memory of
        this process. They are mapped again when they are asked for."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows `ids` as float32 [len(ids), width]; any order, repeats allowed."""
        block_of = np.searchsorted(self._starts, ids, side="right") - 1
        blocks = np.unique(block_of)
        if len(blocks) == 1:
            return self._taken(int(blocks[0]), ids)
        out = np.empty((len(ids), self.width), dtype=np.float32)
        for block in blocks:
            where = block_of == block
            out[where] = self._taken(int(block), ids[where])
        return out

    def _taken(self, block: int, ids: np.ndarray) -> np.ndarray:
        rows = self._checked_block(block).take(ids - self._starts[block], axis=0)
        # NumPy widens float16 number by number, which took longer than projecting the rows; torch does it in vectors.
        return torch.from_numpy(rows).float().numpy()


class Catalog:
    """An opened catalog. Interactions are read split by split, features row by row.

    Raises UserError, naming the file and the mend, for a folder that is not a whole catalog.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        self.meta = _read_meta(path)
        self.name: str = self.meta["name"]
        self.num_users: int = self.meta["num_users"]
        self.num_items: int = self.meta["num_items"]
        for name, size in self.meta["bytes"].items():
            file = path / name
            if not file.exists():
                raise UserError(f"{file}: missing; make the catalog again")
            if file.stat().st_size != size:
                raise UserError(f"{file}: truncated, {file.stat().st_size} of {size} bytes; make the catalog again")
        self._whole: set[str] = set()
        self._splits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.features = {
            name: FeatureFile(path / entry["file"], entry["encoder"], self._sums(entry["file"]))
            for name, entry in self.meta["modalities"].items()
        }

    @property
    def digest(self) -> str:
        """Of all that is in it: catalog.json has the checksums of the other files."""
        return hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def modalities(self) -> list[str]:
        """Those of MODALITIES that the catalog has."""
        return [modality for modality in MODALITIES if modality in self.features]

    def _sums(self, name: str) -> Sequence[str]:
        return self.meta.get("checksums", {}).get(name, ())

    def interactions(self) -> Interactions:
        table = self._read("interactions.parquet")
        return Interactions(*(table[name].to_numpy() for name in INTERACTIONS.names))

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(users, items) of one split, int64. Read at the first call."""
        if name not in self._splits:
            self._splits[name] = self.read_split(name)
        return self._splits[name]

    def read_split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The same, not kept in memory."""
        chosen = pc.field("split") == SPLITS.index(name)
        table = self._read("interactions.parquet", columns=["user", "item"], filters=chosen)
        # Arrow lends some columns read-only, which torch would warn of.
        users, items = (np.require(table[name].to_numpy(), requirements="W") for name in ("user", "item"))
        return users, items

    def titles(self) -> tuple[list[str], list[str]]:
        """(source ids, titles) of the items."""
        table = self._read("items.parquet")
        return table["source_id"].to_pylist(), table["title"].to_pylist()

    def contents(self, name: str) -> list[str | None] | None:
        """Of each item its `text`, or the path of its `photo`, from the catalog's folder where it lies in there.

        None where the catalog was not built from them."""
        table = self._read("items.parquet")
        return table[name].to_pylist() if name in table.column_names else None

    def _read(self, name: str, **options: Any) -> pa.Table:
        path = self.path / name
        if name not in self._whole:
            CheckedFile(path, self._sums(name), _MEND).check()
            self._whole.add(name)
        return _opened(path, lambda: pq.read_table(path, memory_map=True, **options))


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / "catalog.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: no catalog here (catalog.json is missing); make one with `uatmc data import-mmrec` "
            "or `uatmc data build`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); make the catalog again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise UserError(f"{file}: not a {FORMAT} of version {VERSION}; make the catalog again")
    return meta


def _mapped(path: Path) -> tuple[mmap.mmap, pa.RecordBatchFileReader]:
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pages, pa.ipc.open_file(pa.BufferReader(pa.py_buffer(pages)))


def _opened(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (pa.ArrowInvalid, OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); make the catalog again") from None
