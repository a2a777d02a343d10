"""Tensors on disk: whole or not at all, a checksum in their header, and with the permissions that other files get."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from uatmc_dist.checksums import STAMP_METADATA, stamp
from uatmc_dist.whole_files import replacing

AT_ONCE = 1 << 14
"""Rows of one piece."""


@dataclass(frozen=True)
class Pieces:
    """Rows that nobody holds as a whole: float32 pieces that follow each other, made when they are asked for."""

    num_rows: int
    width: int
    rows: Callable[[], Iterator[torch.Tensor]]

    @classmethod
    def of(cls, whole: torch.Tensor) -> "Pieces":
        num_rows, width = whole.shape
        return cls(num_rows, width, lambda: iter(whole.split(AT_ONCE)))


def write_safetensors(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replaces the file when all of it is written, also where two processes write the same one.

    Raises OSError, and leaves what was there, where it cannot be written.
    """
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    _replace(file, lambda unfinished: save_file(contiguous, unfinished, {**STAMP_METADATA, **(metadata or {})}))


def write_pieces(file: Path, tensors: Mapping[str, torch.Tensor | Pieces], metadata: dict[str, str]) -> None:
    """The same for float32 tensors, of which one piece at a time is in memory; safetensors itself writes from memory
    alone. Its format: the length of a JSON header, the header, and the numbers one after another."""
    header: dict[str, object] = {"__metadata__": {**STAMP_METADATA, **metadata}}
    end = 0
    for name, tensor in tensors.items():
        shape = [tensor.num_rows, tensor.width] if isinstance(tensor, Pieces) else list(tensor.shape)
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as out:
            out.write(len(encoded).to_bytes(8, "little") + encoded)
            for tensor in tensors.values():
                for piece in tensor.rows() if isinstance(tensor, Pieces) else (tensor,):
                    out.write(piece.float().cpu().contiguous().numpy().data)

    _replace(file, write)


def _replace(file: Path, write: Callable[[Path], None]) -> None:
    try:
        with replacing(file) as unfinished:
            unfinished.touch()
            mode = unfinished.stat().st_mode
            write(unfinished)
            stamp(unfinished)
            unfinished.chmod(mode)  # safetensors keeps a file for its owner alone, and catalogs and runs are shared
    except (OSError, SafetensorError) as error:
        raise OSError(getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)) from None
