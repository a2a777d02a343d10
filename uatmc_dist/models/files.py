"""Tensors on disk: whole or not at all, a checksum in their header, and with the permissions that other files get."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from uatmc_dist.checksums import STAMP_METADATA, stamp


def write_safetensors(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replaces the file when all of it is written, also where two processes write the same one.

    Raises OSError, and leaves what was there, where it cannot be written.
    """
    unfinished = file.with_name(f".{file.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, unfinished, {**STAMP_METADATA, **(metadata or {})})
        stamp(unfinished)
        unfinished.chmod(mode)  # safetensors keeps a file for its owner alone, and catalogs and runs are shared
        unfinished.replace(file)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)) from None
