"""Choice of implementation, and the checks that every op shares."""

from typing import Literal

import torch

Implementation = Literal["auto", "reference", "tiled"]
# A CSR pair: offsets_B1 (B + 1 row starts) and the columns they point into.
Seen = tuple[torch.Tensor, torch.Tensor]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16)


def resolve(implementation: str) -> str:
    """Name of the implementation to run; ValueError for a name that does not exist."""
    if implementation not in ("auto", "reference", "tiled"):
        raise ValueError(f"implementation: {implementation!r} is not one of 'auto', 'reference', 'tiled'")
    return "tiled" if implementation == "auto" else implementation


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums are kept in float32 for float32 and bfloat16 inputs, in float64 for float64 ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_float(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor) -> None:
    """Refuses a tensor whose rank, sizes (None: any), dtype or device do not fit, naming the argument."""
    check_shape(name, tensor, shape, like)
    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{name}: dtype {tensor.dtype} is not one of float64, float32, bfloat16")


def check_index(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor) -> None:
    """The same for an int64 index tensor."""
    check_shape(name, tensor, shape, like)
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: dtype {tensor.dtype} is not int64")


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor) -> None:
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit {wanted}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: on {tensor.device}, the other tensors on {like.device}")


def check_scores(users_BK: torch.Tensor, items_NK: torch.Tensor) -> tuple[int, int, int]:
    """Checks the two sides of a score pass; returns B, N, K."""
    check_float("users_BK", users_BK, (None, None), users_BK)
    check_float("items_NK", items_NK, (None, users_BK.shape[1]), users_BK)
    if users_BK.dtype != items_NK.dtype:
        raise ValueError(f"items_NK: dtype {items_NK.dtype} differs from users_BK's {users_BK.dtype}")
    return users_BK.shape[0], items_NK.shape[0], users_BK.shape[1]


def excluded_entries(
    skip_B: torch.Tensor | None, seen: Seen | None, num_users: int, num_items: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the scores that are left out, as (rows, columns) sorted by column.

    One sparse list serves the positives (`skip_B`, -1: not in this block) and the known positives
    (`seen`), so that no mask of size B x N is ever made. An entry may be named twice.
    """
    rows, columns = [], []
    if skip_B is not None:
        kept = (skip_B >= 0).nonzero().squeeze(1)
        rows.append(kept)
        columns.append(skip_B[kept])
    if seen is not None:
        offsets, seen_columns = seen
        if offsets.shape != (num_users + 1,):
            raise ValueError(f"seen: {tuple(offsets.shape)} offsets for {num_users} rows; {num_users + 1} are needed")
        rows.append(torch.repeat_interleave(torch.arange(num_users, device=offsets.device), offsets.diff()))
        columns.append(seen_columns)
    if not rows:
        empty_E = torch.empty(0, dtype=torch.int64, device=device)
        return empty_E, empty_E
    rows_E, columns_E = torch.cat(rows), torch.cat(columns)
    if columns_E.numel() and not (int(columns_E.min()) >= 0 and int(columns_E.max()) < num_items):
        raise ValueError(f"skip_B, seen: a column is outside of the {num_items} items of this block")
    columns_E, order = columns_E.sort()
    return rows_E[order], columns_E
