"""Choice of implementation, and the checks that every op shares."""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch

Implementation = Literal["auto", "reference", "tiled", "triton"]
"""auto: Triton for CUDA tensors, tiled for others. triton on CPU tensors: only with TRITON_INTERPRET=1."""

# A CSR pair: offsets_B1 (B + 1 row starts) and the columns they point into.
Seen = tuple[torch.Tensor, torch.Tensor]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16)
_LOG = logging.getLogger("uatmc_kernels")


def _constant_when_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compiler.assume_constant_result, without the second that its import of torch._dynamo takes from every start
    of a program; tests/kernels/test_library.py compiles with it."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def resolve(implementation: str, like: torch.Tensor, *, unfit: str = "", more: tuple[str, ...] = ()) -> str:
    """Name of the implementation to run on tensors like this one.

    `unfit` says why Triton cannot take these arguments, where it cannot; `more` are names that only this op knows.
    Raises ValueError for a name that does not exist, or for Triton where it cannot run.
    """
    names = ("auto", "reference", "tiled", "triton", *more)
    if implementation not in names:
        raise ValueError(f"implementation: {implementation!r} is not one of {', '.join(map(repr, names))}")
    if implementation in ("reference", "tiled") or (implementation == "auto" and like.device.type == "cpu"):
        return "tiled" if implementation == "auto" else implementation
    problem = unfit or _triton_problem(like.device.type, like.device.index, like.dtype)
    if implementation == "auto":
        if problem:
            _say_once(f"auto: tiled instead of triton on {like.device.type}: {problem}")
        return "tiled" if problem else "triton"
    if problem:
        raise ValueError(f"implementation: {implementation!r} cannot run: {problem}")
    return implementation


def backend(name: str) -> ModuleType:
    """The module whose functions run; Triton is imported when it is first asked for."""
    return importlib.import_module(f"uatmc_kernels.{name.removesuffix('_atomic')}")


@_constant_when_compiled
@functools.cache
def _triton_problem(device: str, index: int | None, dtype: torch.dtype) -> str:
    """Why Triton cannot run there, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"no Triton kernel for {dtype}"
    if is_interpreted():
        return ""
    if device != "cuda":
        return f"the tensors are on {device}; set TRITON_INTERPRET=1 before the first import to interpret the kernels"
    capability = torch.cuda.get_device_capability(index)
    return "" if capability >= (8, 0) else f"compute capability {capability[0]}.{capability[1]} is below 8.0"


@_constant_when_compiled
@functools.cache
def _say_once(message: str) -> None:
    _LOG.warning(message)


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels. Triton itself reads this when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def seen_pair(offsets: torch.Tensor | None, columns: torch.Tensor | None) -> Seen | None:
    return None if offsets is None or columns is None else (offsets, columns)


class ScorePass(NamedTuple):
    """What every pass over the scores of users against items takes; checked, and as the caller gave it."""

    users_BK: torch.Tensor
    items_NK: torch.Tensor
    positive_scores_B: torch.Tensor
    skip_B: torch.Tensor
    seen: Seen | None
    item_offset_N: torch.Tensor | None = None
    """Added to every score of an item; of the softmax passes alone."""

    @classmethod
    def of(
        cls,
        users: torch.Tensor,
        items: torch.Tensor,
        positive: torch.Tensor,
        skip: torch.Tensor,
        offsets: torch.Tensor | None,
        columns: torch.Tensor | None,
        item_offset: torch.Tensor | None = None,
    ) -> "ScorePass":
        """From the arguments of an op of torch.library, which knows no pairs."""
        return cls(users, items, positive, skip, seen_pair(offsets, columns), item_offset)

    def flat(self) -> tuple[torch.Tensor | None, ...]:
        """The arguments of an op: what `of` takes, but for the items' offset."""
        return (*self[:4], *(self.seen or (None, None)))

    def left_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, columns) of the scores that do not count, sorted by column. Waits for the device."""
        return left_out(self.skip_B, self.seen, len(self.users_BK), len(self.items_NK), self.users_BK.device)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums are kept in float32 for float32 and bfloat16 inputs, in float64 for float64 ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_float(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor) -> None:
    """Refuses a tensor whose rank, sizes (None: any), layout, dtype or device do not fit, naming the argument.

    Strides are free: rows may be slices, expanded or transposed.
    """
    _check(name, tensor, shape, like)
    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{name}: dtype {tensor.dtype} is not one of float64, float32, bfloat16")


def check_same_dtype(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name}: dtype {tensor.dtype} differs from {other_name}'s {other.dtype}")


def check_index(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor) -> None:
    """The same for an int64 index tensor."""
    _check(name, tensor, shape, like)
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: dtype {tensor.dtype} is not int64")


def check_scores(users_BK: torch.Tensor, items_NK: torch.Tensor, seen: Seen | None = None) -> None:
    """Checks the two sides of a score pass, and the known positives where there are any."""
    check_float("users_BK", users_BK, (None, None), users_BK)
    check_float("items_NK", items_NK, (None, users_BK.shape[1]), users_BK)
    check_same_dtype("items_NK", items_NK, "users_BK", users_BK)
    if seen is not None:
        check_index("seen: offsets", seen[0], (len(users_BK) + 1,), users_BK)
        check_index("seen: columns", seen[1], (None,), users_BK)


def check_item_offset(item_offset_N: torch.Tensor | None, items_NK: torch.Tensor) -> None:
    if item_offset_N is not None:
        check_float("item_offset_N", item_offset_N, (len(items_NK),), items_NK)


def check_score_pass(scores: ScorePass) -> None:
    num_users = len(scores.users_BK)
    check_scores(scores.users_BK, scores.items_NK, scores.seen)
    check_float("positive_scores_B", scores.positive_scores_B, (num_users,), scores.users_BK)
    check_index("skip_B", scores.skip_B, (num_users,), scores.users_BK)


def content_columns(columns: slice, width: int) -> slice:
    """The columns of the content half, counted from the front. Raises ValueError unless they are neighbours."""
    start, stop, step = columns.indices(width)
    if step != 1:
        raise ValueError(f"columns: a step of {step}; the content columns are neighbours")
    return slice(start, max(start, stop))


def left_out(
    skip_B: torch.Tensor | None, seen: Seen | None, num_users: int, num_items: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the scores that are left out, as (rows, columns) sorted by column.

    One sparse list serves the positives (`skip_B`, -1: not in this block) and the known positives (`seen`), so
    that no mask of size B x N is ever made. An entry may be named twice.
    """
    rows, columns = [], []
    if skip_B is not None:
        kept = (skip_B >= 0).nonzero().squeeze(1)
        rows.append(kept)
        columns.append(skip_B[kept])
    if seen is not None:
        offsets, seen_columns = seen
        users = torch.arange(num_users, device=device)
        rows.append(torch.repeat_interleave(users, offsets.diff(), output_size=len(seen_columns)))
        columns.append(seen_columns)
    if not rows:
        empty_E = torch.empty(0, dtype=torch.int64, device=device)
        return empty_E, empty_E
    rows_E, columns_E = torch.cat(rows), torch.cat(columns)
    if columns_E.numel() and not (int(columns_E.min()) >= 0 and int(columns_E.max()) < num_items):
        raise ValueError(f"skip_B, seen: a column is outside of the {num_items} items of this block")
    columns_E, order = columns_E.sort()
    return rows_E[order], columns_E


def _check(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor) -> None:
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: layout {tensor.layout} is not strided")
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit {wanted}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: on {tensor.device}, the other tensors on {like.device}")
