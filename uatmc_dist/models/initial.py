"""The seeded rows that tables start with; apart from the tables, so that a model on disk needs no TorchRec."""

import zlib

import torch

from uatmc_dist.seeding import normal_rows

_BLOCK = 1 << 16


def initial_rows(table: str, lo: int, hi: int, dim: int, std: float, seed: int) -> torch.Tensor:
    """Normal rows [lo, hi); they depend on (seed, row) and not on the world size."""
    words = seed, zlib.crc32(table.encode())
    return normal_rows(lo, hi, dim, *words, block=_BLOCK) * std
