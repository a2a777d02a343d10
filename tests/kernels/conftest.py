"""Kernels run on the GPU where there is one; else Triton interprets them on the CPU (tests/conftest.py)."""

import pytest
import torch

from uatmc_kernels.tiled import _tiles


@pytest.fixture(scope="session")
def triton_device() -> str:
    pytest.importorskip("triton", reason="Triton is not installed")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, request):
    """Tiles of a few rows and columns, so that small problems cross many borders; not where a test says real_tiles."""
    if "real_tiles" in request.keywords:
        return
    monkeypatch.setattr(_tiles, "TILE_BYTES", 1)
    monkeypatch.setattr(_tiles, "MIN_TILE", 16)
    monkeypatch.setattr(_tiles, "CHUNK_BYTES", 1)
    monkeypatch.setattr(_tiles, "MIN_CHUNK", 16)
    if "triton_device" in request.fixturenames:
        from uatmc_kernels.triton import _launches

        small = {key: (32, 32, 16, 32, 4, 2) for key in next(iter(_launches.TABLE.values()))}
        if not torch.cuda.is_available():  # tensor instructions want their own tile shapes
            monkeypatch.setattr(_launches, "TABLE", {name: small for name in _launches.TABLE})
