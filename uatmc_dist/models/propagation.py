"""Messages between users and items over their row blocks: products with the mean-normalised adjacency.

Rank r has the rows of its block of users and of its block of items, and the edges of both. One product gathers the
other side's rows, (U + N) x width numbers on every rank, and no more; it is differentiable to any order, and its
gradient travels back by reduce-scatter.

    u, n  users and items of this rank    U, N  of all ranks    E  edges of this rank's rows
"""

import warnings
from typing import Any

import torch

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.parallel.item_parallel import ItemBlock, gather_rows


class BipartiteGraph:
    """Training pairs as edges between the blocks of one rank and all nodes of the other side, D^-1 A: a node without
    edges gets zeros. CSR and its transpose, as MKL and cuSPARSE multiply them (benchmarks/propagation.py)."""

    def __init__(self, known: KnownPositives, users: ItemBlock, items: ItemBlock, device: torch.device) -> None:
        user_E, item_E = known.pairs()
        self._user_counts, self._item_counts = users.sizes, items.sizes
        self._of_users = _Rows(user_E, item_E, users, items.num_items, device)
        self._of_items = _Rows(item_E, user_E, items, users.num_items, device)

    def propagate(self, users_ud: torch.Tensor, items_nd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean of each user's items [u, d], mean of each item's users [n, d]). Collective."""
        return (
            self._of_users.mean(gather_rows(items_nd, self._item_counts)),
            self._of_items.mean(gather_rows(users_ud, self._user_counts)),
        )


class _Rows:
    """The edges that end in a block of rows."""

    def __init__(
        self, row_E: torch.Tensor, column_E: torch.Tensor, block: ItemBlock, num_columns: int, device: torch.device
    ) -> None:
        mine = (row_E >= block.lo) & (row_E < block.hi)
        row_E, column_E = row_E[mine] - block.lo, column_E[mine]
        shape = block.hi - block.lo, num_columns
        weight_E = 1 / torch.bincount(row_E, minlength=shape[0]).float()[row_E]
        self._matrix = csr(row_E, column_E, weight_E, shape).to(device)
        self._transposed = csr(column_E, row_E, weight_E, shape[::-1]).to(device)

    def mean(self, columns_Md: torch.Tensor) -> torch.Tensor:
        return sparse_product(columns_Md, self._matrix, self._transposed)


def sparse_product(dense: torch.Tensor, matrix: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
    """matrix @ dense, given the transposed matrix, too; differentiable in `dense` to any order."""
    return _SparseProduct.apply(dense, matrix, transposed)


def csr(row_E: torch.Tensor, column_E: torch.Tensor, value_E: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A sparse matrix from its entries, none twice."""
    order = torch.argsort(row_E * shape[1] + column_E)
    offsets = torch.zeros(shape[0] + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(row_E, minlength=shape[0]).cumsum(0)
    return csr_tensor(offsets, column_E[order], value_E[order], shape)


def csr_tensor(
    offsets: torch.Tensor, column_E: torch.Tensor, value_E: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """From rows that are in order, without torch's warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # beta since torch 1.10; invariants hold by construction
        return torch.sparse_csr_tensor(offsets, column_E, value_E, shape)


class _SparseProduct(torch.autograd.Function):
    """matrix @ dense; linear, so that the backward of its backward is itself."""

    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, matrix: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.matrices = transposed, matrix
        if not matrix.numel():
            return dense.new_zeros(matrix.shape[0], dense.shape[1])
        return matrix.to(dense.dtype) @ dense

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return _SparseProduct.apply(gradient, *ctx.matrices), None, None
