"""Writing a catalog (data/catalog.py says what is in it)."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uatmc_dist.checksums import checksums
from uatmc_dist.data.catalog import BASELINES, FORMAT, INTERACTIONS, PROJECTED, SPLITS, TRAINING, VERSION, Interactions
from uatmc_dist.errors import UserError
from uatmc_dist.whole_files import replacing

_BLOCK_BYTES = 16 << 20


class FeatureWriter:
    """Writes one modality block by block, refusing NaN and Inf with the row's number.

    `source` names what the user gave (a file, say) in messages.
    """

    def __init__(self, path: Path, width: int, dtype: np.dtype, source: str) -> None:
        value_type = pa.float16() if dtype == np.float16 else pa.float32()
        self._schema = pa.schema([pa.field("features", pa.list_(value_type, width))])
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self._width, self._dtype, self._source = width, dtype, source
        self.num_rows = 0

    def write(self, rows: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # told below
            stored = np.ascontiguousarray(rows, dtype=self._dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            row = self.num_rows + int(np.argmin(finite))
            what = f"NaN, Inf or what is too large for {self._dtype.name}"
            raise UserError(f"{self._source}: row {row} holds {what}; mend the feature or set the row to zeros")
        values = pa.array(stored.ravel())
        column = pa.FixedSizeListArray.from_arrays(values, self._width)
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self.num_rows += len(rows)

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._sink.close()


def block_rows(width: int, dtype: np.dtype) -> int:
    """Rows a block, so that a block has about 16 MiB."""
    return max(1, _BLOCK_BYTES // (width * dtype.itemsize))


def refuse_to_replace(path: Path, overwrite: bool) -> None:
    """UserError where `path` is no place for a catalog, or has one that is not to be replaced."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give the folder to write the catalog into")
    if (path / "catalog.json").exists() and not overwrite:
        raise UserError(f"{path}: holds a catalog already; give another folder or --overwrite")


@dataclass
class CatalogWriter:
    """Writes a catalog; catalog.json comes last, so that an interrupted one is never taken for whole.

    Raises UserError where `path` already holds a catalog and `overwrite` is not set.
    """

    path: Path
    name: str
    num_users: int
    num_items: int
    overwrite: bool = False
    _modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _interactions: pq.ParquetWriter | None = None

    def __post_init__(self) -> None:
        refuse_to_replace(self.path, self.overwrite)
        if (self.path / "catalog.json").exists():
            (self.path / "catalog.json").unlink()
            for cache in (PROJECTED, TRAINING, BASELINES):
                shutil.rmtree(self.path / cache, ignore_errors=True)
        try:
            (self.path / "features").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); give another folder") from None

    def features(self, modality: str, width: int, dtype: np.dtype, encoder: str, source: str) -> FeatureWriter:
        dtype = np.dtype(np.float16 if dtype == np.float16 else np.float32)
        file = f"features/{modality}.arrow"
        self._modalities[modality] = {"file": file, "width": width, "dtype": dtype.name, "encoder": encoder}
        return FeatureWriter(self.path / file, width, dtype, source)

    def encoded(self, modality: str, rows: np.ndarray, record: dict[str, Any]) -> None:
        """Features [N, width] that an encoder has made, and how (encoders/base.py)."""
        width, step = rows.shape[1], block_rows(rows.shape[1], rows.dtype)
        with self.features(modality, width, rows.dtype, record["encoder"], f"encoded {modality} content") as writer:
            for start in range(0, len(rows), step):
                writer.write(rows[start : start + step])
        self._modalities[modality]["encoding"] = record

    def interactions(self, block: Interactions) -> None:
        """Appends a block of them."""
        if self._interactions is None:
            self._interactions = pq.ParquetWriter(self.path / "interactions.parquet", INTERACTIONS)
        columns = block.users, block.items, block.timestamps, block.splits
        arrays = [pa.array(column, kind) for column, kind in zip(columns, INTERACTIONS.types, strict=True)]
        self._interactions.write_table(pa.table(arrays, schema=INTERACTIONS))
        for index, name in enumerate(SPLITS):
            self._counts[name] += int((block.splits == index).sum())

    def finish(
        self,
        source_ids: list[str],
        titles: list[str],
        notes: Mapping[str, int | str],
        user_ids: list[str] | None = None,
        contents: Mapping[str, Sequence[str | None]] | None = None,
    ) -> None:
        """Writes items and users, then catalog.json. `notes` are counts worth keeping (cold users, ...) and how
        the catalog came about, `contents`
        columns of the items: what was encoded."""
        assert self._interactions is not None
        self._interactions.close()
        columns = {"source_id": source_ids, "title": titles, **(contents or {})}
        items = {name: pa.array(column, pa.string()) for name, column in columns.items()}
        pq.write_table(pa.table(items), self.path / "items.parquet")
        files = ["interactions.parquet", "items.parquet", *(entry["file"] for entry in self._modalities.values())]
        if user_ids is not None:
            pq.write_table(pa.table({"source_id": user_ids}), self.path / "users.parquet")
            files.append("users.parquet")
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "num_users": self.num_users,
            "num_items": self.num_items,
            "num_interactions": self._counts,
            "modalities": self._modalities,
            "notes": dict(notes),
            "bytes": {name: (self.path / name).stat().st_size for name in files},
            "checksums": {name: checksums(self.path / name) for name in files},
        }
        with replacing(self.path / "catalog.json") as unfinished:
            unfinished.write_text(json.dumps(meta, indent=2), encoding="utf-8")
