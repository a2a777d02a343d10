"""Kernels run on the GPU where there is one; else Triton interprets them on the CPU (tests/conftest.py)."""

import importlib.util

import numpy as np
import pytest
import torch

from uatmc_kernels.tiled import _tiles


@pytest.fixture(scope="session")
def triton_device() -> str:
    pytest.importorskip("triton", reason="Triton is not installed")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session", autouse=True)
def whole_slices_are_reduced():
    """Triton's interpreter calls the function of a reduction for every pair of numbers, which was a third of the time
    of these tests. Here it gets whole slices, in the same order."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import ReduceOps

    def reduce(self, inputs):
        values, axis = self.unravel(inputs, self.axis)
        slices = [np.moveaxis(value.handle.data, axis, 0) for value in values]
        tensors = lambda rows: tuple(self.to_tensor(row, v.dtype) for row, v in zip(rows, values, strict=True))  # noqa: E731
        total = tensors([rows[0] for rows in slices])
        for rows in zip(*(rows[1:] for rows in slices), strict=True):
            total = self.combine_fn.fn(*total, *tensors(rows))
            total = total if isinstance(total, tuple) else (total,)
        assert not self.keep_dims and self.axis is not None
        return list(total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReduceOps, "generic_reduce", reduce)
        yield


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
