"""How kernels are launched: the table's entry for a device and a width, rows, splits and entries left out."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton

from uatmc_kernels._dispatch import Seen, is_interpreted
from uatmc_kernels.triton._launch_table import TABLE

_WIDTHS = (32, 64, 128, 256)
_ARCHITECTURES = (100, 90, 80)
_DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
# The interpreter runs one program after the other: a few are enough to cross every border between them.
_INTERPRETED_PROGRAMS = 6
# Programs for each multiprocessor that a sweep aims at when it splits its stream.
_WAVES = 4


@dataclass(frozen=True)
class Launch:
    """Tile shapes and resources of one variant on one architecture, for rows up to a width."""

    block_owner: int
    block_stream: int
    block_k: int
    """Columns of one product; a wider row takes several."""
    out_k: int
    """Columns of the output that one program makes; a wider row takes several programs."""
    num_warps: int
    num_stages: int
    hoist: bool
    """Of the sweeps: compute once, before the loop over the stream, what can be. It takes registers as long as the loop
    runs, so that where tiles are tight larger ones fit without."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of Triton's compiler. Fused multiply-adds, whatever the installed version's default."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@functools.cache
def _device(index: int | None) -> tuple[int, int]:
    """(architecture of the table, multiprocessors) of a GPU."""
    properties = torch.cuda.get_device_properties(index)
    capability = properties.major * 10 + properties.minor
    # From 12.0 on: the shared memory of 8.9, and none of 10.0's tensor memory. Not compiled for; registers may spill.
    architecture = 80 if capability >= 120 else next(known for known in _ARCHITECTURES if known <= capability)
    return architecture, properties.multi_processor_count


def launch_for(variant: str, width: int, like: torch.Tensor) -> Launch:
    """The table's launch for rows of `width` columns and the dtype and device of `like`."""
    architecture = 80 if is_interpreted() else _device(like.device.index)[0]
    known = next((known for known in _WIDTHS if width <= known), _WIDTHS[-1])
    return Launch(*TABLE[variant][architecture, known, _DTYPES[like.dtype]])


def _wanted_programs(like: torch.Tensor) -> int:
    return _INTERPRETED_PROGRAMS if is_interpreted() else _WAVES * _device(like.device.index)[1]


def split(num_rows: int, block: int, num_tiles: int, like: torch.Tensor) -> tuple[int, int]:
    """(splits, rows of each) of a stream of rows, so that few tiles of owners still fill the device."""
    num_blocks = triton.cdiv(num_rows, block)
    blocks_of_split = triton.cdiv(num_blocks, max(1, min(num_blocks, _wanted_programs(like) // num_tiles)))
    return triton.cdiv(num_blocks, blocks_of_split), blocks_of_split * block


def programs(num_tiles: int, like: torch.Tensor) -> tuple[int, int]:
    """(programs, tiles of each) for programs that walk over neighbouring tiles."""
    tiles_of_program = triton.cdiv(num_tiles, min(num_tiles, _wanted_programs(like)))
    return triton.cdiv(num_tiles, tiles_of_program), tiles_of_program


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows with adjacent columns; any distance between rows. A copy only where that is not so already."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()


def vector(tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return tensor.to(dtype).contiguous()


def entries(
    seen: Seen | None, owner_is_user: bool, block_owner: int, block_stream: int, num_owners: int, num_stream: int
) -> dict[str, Any]:
    """Arguments first_entries, entry_rows, entry_owners of a kernel: the entries left out, in the order a program meets
    them.

    Entries first_entries[t] to first_entries[t + 1] belong to tile t of the owners, sorted by the row of the stream;
    the last of them is a sentinel beyond the stream. Nothing here waits for the device.
    """
    if seen is None:
        return {"first_entries": None, "entry_rows": None, "entry_owners": None}
    offsets, columns = seen
    users = torch.arange(len(offsets) - 1, device=offsets.device)
    users = torch.repeat_interleave(users, offsets.diff(), output_size=len(columns))
    owners, stream = (users, columns) if owner_is_user else (columns, users)
    rows_of_tile = num_stream + block_stream
    begins = torch.arange(triton.cdiv(num_owners, block_owner) + 1, device=offsets.device) * rows_of_tile
    keys, order = torch.cat([owners // block_owner * rows_of_tile + stream, begins[1:] - 1]).sort()
    owners = torch.cat([owners % block_owner, begins[1:]])
    return {
        "first_entries": torch.searchsorted(keys, begins, out_int32=True),
        "entry_rows": (keys % rows_of_tile).to(torch.int32),
        "entry_owners": owners[order].to(torch.int32),
    }
