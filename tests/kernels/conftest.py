"""Kernels run on the GPU where there is one; else Triton interprets them on the CPU (tests/conftest.py)."""

import dataclasses
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
def what_the_interpreter_does_again_and_again():
    """Triton's interpreter calls the function of a reduction for every pair of numbers: here it gets whole slices, in
    the same order. It looks through all of triton.language whenever a kernel calls a function: here once a module;
    and it computes every sum of indices three times to find out whether 32 bits hold it, of problems that are
    far too small for that. All of it was two thirds of the time of these tests."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction, ReduceOps, _patch_lang, interpreter_builder

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

    prepared = set()

    def call(self, *args, **kwargs):
        if id(self.fn.__globals__) not in prepared:
            prepared.add(id(self.fn.__globals__))
            _patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReduceOps, "generic_reduce", reduce)
        patch.setattr(InterpretedFunction, "__call__", call)
        options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
        patch.setattr(interpreter_builder, "options", options)
        yield


@pytest.fixture
def long_stream(triton_device, monkeypatch) -> int:
    """So many rows that a single program flushes its sums more than once; fewer where that is interpreted."""
    from uatmc_kernels.triton import _launches, _math, _softmax, _sweeps, bpr_all_items, logsumexp_all_items

    monkeypatch.setattr(_launches, "_wanted_programs", lambda like: 1)
    if triton_device == "cuda":
        return 4200
    for module in (_math, _softmax, _sweeps, bpr_all_items, logsumexp_all_items):
        monkeypatch.setattr(module, "FLUSH", type(module.FLUSH)(128))
    return 300


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

        small = {key: (32, 32, 16, 32, 4, 2, True) for key in next(iter(_launches.TABLE.values()))}
        if not torch.cuda.is_available():  # tensor instructions want their own tile shapes
            monkeypatch.setattr(_launches, "TABLE", {name: small for name in _launches.TABLE})
