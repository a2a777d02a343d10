"""Projected features on disk: with frozen projectors they are computed once, whoever asks.

CATALOG/projected/KEY/CHUNK.safetensors    rows v, t of one chunk of items; KEY is a hash of the projectors' weights,
                                           the feature files and the number format

A chunk is a whole number of rows whatever the number of ranks, so that all of them find the same rows; a pass that was
interrupted goes on where it stopped.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from uatmc_dist.checksums import check_stamp
from uatmc_dist.data.catalog import MODALITIES, PROJECTED, Catalog
from uatmc_dist.models.files import write_safetensors
from uatmc_dist.models.projectors import CHUNK, Projectors, project_items

_KEYS_KEPT = 4
_LOG = logging.getLogger("uatmc_dist")


def projected_items(
    model: Projectors,
    catalog: Catalog,
    lo: int,
    hi: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected rows v, t [hi - lo, d] of the items [lo, hi) in `dtype`, from the cache where they are in it.

    `progress(done, total)` is told of the items.
    """
    folder = catalog.path / PROJECTED / _key(model, catalog, dtype)
    v_nd = torch.empty(hi - lo, model.dim, dtype=dtype, device=device)
    t_nd = torch.empty_like(v_nd)
    is_kept = _opened(folder)
    for start in range(lo // CHUNK * CHUNK, hi, CHUNK):
        stop = min(start + CHUNK, catalog.num_items)
        file = folder / f"{start // CHUNK:08d}.safetensors"
        rows = _read(file, stop - start)
        if rows is None:
            projected = project_items(model, catalog, start, stop, device)
            rows = {name: part.to(dtype) for name, part in zip(MODALITIES, projected, strict=True)}
            is_kept = is_kept and _write(file, rows)
        first, last = max(start, lo), min(stop, hi)
        for whole_nd, part in zip((v_nd, t_nd), rows.values(), strict=True):
            whole_nd[first - lo : last - lo] = part[first - start : last - start].to(device)
        progress(last - lo, hi - lo)
    return v_nd, t_nd


def _key(model: Projectors, catalog: Catalog, dtype: torch.dtype) -> str:
    digest = hashlib.sha256(str(dtype).encode())
    for name in catalog.modalities:
        file = catalog.features[name].path.stat()
        digest.update(f"{name} {file.st_size} {file.st_mtime_ns}".encode())
        for key, weight in getattr(model, name).state_dict().items():
            digest.update(key.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:20]


def _opened(folder: Path) -> bool:
    """Makes the folder and drops the oldest ones. False where the catalog cannot be written: then nothing is kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except OSError as error:
        _LOG.warning(f"{folder.parent}: projected features are not kept ({error.strerror})")
        return False
    by_age = sorted(folder.parent.iterdir(), key=_last_used)
    for old in by_age[:-_KEYS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # another rank, or another run on this catalog, has just dropped it
        return 0.0


def _read(file: Path, num_rows: int) -> dict[str, torch.Tensor] | None:
    """None where the chunk is not there, or not whole."""
    try:
        if not check_stamp(file):
            _LOG.warning(f"{file}: damaged; projected again")
            return None
        found = load_file(file)
        rows = {name: found[name] for name in MODALITIES}
    except (OSError, SafetensorError, KeyError):
        return None
    return rows if all(len(part) == num_rows for part in rows.values()) else None


def _write(file: Path, rows: dict[str, torch.Tensor]) -> bool:
    try:
        write_safetensors(file, rows)
    except OSError as error:
        _LOG.warning(f"{file.parent}: projected features are not kept ({error.strerror})")
        return False
    return True
