"""The k best items by float64 scores at the price of float32 or less: candidates by rough scores, rescored and proven.

B  users    n  items    K  width of an embedding    c  candidates
"""

from functools import cached_property

import numpy as np
import torch

from uatmc_dist.devices import multiplies_bfloat16
from uatmc_dist.models.propagation import csr_tensor
from uatmc_kernels import topk_all_items

_CACHE_BYTES, _SHARED_CACHE_BYTES = 1 << 21, 1 << 25
"""Of one core, and of all."""
_WORTH_RESCORING = 4_000
"""Items from which on a CPU, whose float64 product takes twice as long as that in float32, gains by it."""
_SPARE = {torch.float32: 16, torch.bfloat16: 32}
"""Candidates beyond k. With fewer more users fall back, with more rescoring costs more (benchmarks/ranking.py)."""
_WORTH_ROUNDING = 16
"""Users from which on they are ranked by bfloat16 first: the product of fewer takes no less time than in float32."""
_ROWS_AT_ONCE = 1 << 16


class ExactTopk:
    """Of one block of items, for many batches of users: what does not depend on the users is computed once."""

    def __init__(self, items_nK: torch.Tensor) -> None:
        self._items_nK = items_nK
        self._by_bfloat16 = items_nK.device.type == "cpu" and multiplies_bfloat16(items_nK.device)

    @torch.no_grad()
    def __call__(
        self, users_BK: torch.Tensor, k: int, seen: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `topk_all_items` gives for these float32 rows in float64: (scores_Bk float32, ids_Bk), equal scores
        ordered by item, so that the lists do not depend on how the items are cut into blocks.

        An item that is no candidate has a rough score of at most the last candidate's, c, so a true one of at most
        c + e, with e the most that rough scores may be off. Where the k-th best rescored candidate is above that, no
        other item belongs on the list. Users for whom this does not hold, by ties or by chance, are ranked again: after
        bfloat16 by float32, after float32 in float64.
        """
        dtypes = [torch.float32]
        if self._by_bfloat16 and len(users_BK) >= _WORTH_ROUNDING:
            dtypes.insert(0, torch.bfloat16)
        return self._ranked(users_BK, k, seen, dtypes)

    def _ranked(
        self,
        users_BK: torch.Tensor,
        k: int,
        seen: tuple[torch.Tensor, torch.Tensor] | None,
        dtypes: list[torch.dtype],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By candidates of these dtypes, one after the other, then in float64."""
        items_nK = self._items_nK
        pays = users_BK.device.type != "cpu" or len(items_nK) >= _WORTH_RESCORING
        if not dtypes or not pays or len(items_nK) <= k:
            return topk_all_items(users_BK.double(), self._in_float64, k, seen=seen)
        dtype, *finer = dtypes
        wanted = min(k + _SPARE[dtype], len(items_nK))
        rounded = dtype == torch.bfloat16
        rows_nK = self._in_bfloat16 if rounded else items_nK
        scores_Bc, ids_Bc = topk_all_items(users_BK.to(dtype), rows_nK, wanted, seen=seen, rounded=rounded)
        last_B = scores_Bc[:, -1].double()
        ids_Bc = _sorted(ids_Bc)
        exact_Bc = self._rescored(users_BK, ids_Bc)
        ordered, place = exact_Bc.sort(dim=1, descending=True, stable=True)
        scores_Bk, ids_Bk = ordered[:, :k].contiguous(), ids_Bc.gather(1, place[:, :k])
        # Fewer than were asked for: every item that is left is a candidate.
        proven_B = (ids_Bc[:, 0] < 0) | (scores_Bk[:, -1].double() > last_B + self._off(users_BK, last_B, rounded))
        if not bool(proven_B.all()):
            rest_F = (~proven_B).nonzero().squeeze(1)
            if rounded and 2 * len(rest_F) > len(users_BK):
                self._by_bfloat16 = False  # these embeddings are told apart by float32 alone
            of_rest = None if seen is None else _rows_of(seen, rest_F)
            scores_Bk[rest_F], ids_Bk[rest_F] = self._ranked(users_BK[rest_F], k, of_rest, finer)
        return scores_Bk, ids_Bk

    @cached_property
    def _in_float64(self) -> torch.Tensor:
        return self._items_nK.double()

    @cached_property
    def _in_bfloat16(self) -> torch.Tensor:
        return self._items_nK.bfloat16()

    @cached_property
    def _longest(self) -> torch.Tensor:
        return _lengths(self._items_nK).amax()

    @cached_property
    def _most_rounded(self) -> torch.Tensor:
        """The most that a row was moved by being rounded to bfloat16."""
        parts = zip(self._items_nK.split(_ROWS_AT_ONCE), self._in_bfloat16.split(_ROWS_AT_ONCE), strict=True)
        return torch.stack([_lengths(exact - rounded.float()).amax() for exact, rounded in parts]).amax()

    def _rescored(self, users_BK: torch.Tensor, ids_Bc: torch.Tensor) -> torch.Tensor:
        """Scores of these items, computed in float64 and rounded to float32; -inf for item -1."""
        is_cached = users_BK.device.type == "cpu" and 8 * self._items_nK.numel() <= _SHARED_CACHE_BYTES
        products_of = _products_in_place if is_cached else _products_of_copies
        items_nK = self._in_float64 if is_cached else self._items_nK
        return products_of(users_BK, items_nK, ids_Bc.clamp(min=0)).masked_fill_(ids_Bc < 0, -torch.inf)

    def _off(self, users_BK: torch.Tensor, last_B: torch.Tensor, rounded: bool) -> torch.Tensor:
        """More than a rough score of these users may be off, [B] float64.

        In float32: K roundings of 2^-24 in any order, relative to |u| |v|, and as much again for three TF32 products
        (22 bits of each factor) and sums that are cut, not rounded. With rows, and scores of at most `last_B`, that are
        rounded to bfloat16 in addition: <u, v> - <u', v'> is <u - u', v> + <u', v - v'>, whose lengths are measured; a
        score that is rounded to c is at most c + 2^-8 |c|. Processors take denormal numbers for zero in these products.
        """
        width, lengths_B = users_BK.shape[1], _lengths(users_BK)
        sums_B = (width + 64) * 2.0**-22 * lengths_B * self._longest
        if not rounded:
            return sums_B
        lost_B = _lengths(users_BK - users_BK.bfloat16().float())
        rows_B = lost_B * self._longest + (lengths_B + lost_B) * self._most_rounded
        return 1.001 * (rows_B + sums_B) + 2.0**-8 * last_B.abs() + width * 2.0**-100


def _sorted(ids_Bc: torch.Tensor) -> torch.Tensor:
    """Rows of integers in order: on a CPU NumPy takes a tenth of the time."""
    return torch.from_numpy(np.sort(ids_Bc.numpy(), axis=1)) if ids_Bc.device.type == "cpu" else ids_Bc.sort(1).values


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=1).double()


def _products_in_place(users_BK: torch.Tensor, items_nK: torch.Tensor, ids_Bc: torch.Tensor) -> torch.Tensor:
    """[B, c] float32 of float64 items, whose rows are read where they are: two thirds of the time of copying them, if
    they are in a cache."""
    (num_users, num_candidates), num_items = ids_Bc.shape, len(items_nK)
    offsets = torch.arange(0, ids_Bc.numel() + 1, num_candidates)
    zero_E = items_nK.new_zeros(ids_Bc.numel())
    # Not looked at by torch: a user may have an item twice.
    asked = csr_tensor(offsets, ids_Bc.reshape(-1), zero_E, (num_users, num_items))
    return torch.sparse.sampled_addmm(asked, users_BK.double(), items_nK.T).values().view(ids_Bc.shape).float()


def _products_of_copies(users_BK: torch.Tensor, items_nK: torch.Tensor, ids_Bc: torch.Tensor) -> torch.Tensor:
    """[B, c] float32, summed in float64. On a CPU a few users at a time, whose rows fit into its cache, in memory that
    is asked for once."""
    (num_users, width), num_candidates = users_BK.shape, ids_Bc.shape[1]
    at_once = max(1, num_users)
    if users_BK.device.type == "cpu":
        at_once = min(at_once, max(1, _CACHE_BYTES // (8 * num_candidates * width)))
    rows, products = (
        items_nK.new_empty(at_once, num_candidates, width, dtype=dtype) for dtype in (items_nK.dtype, torch.float64)
    )
    exact_Bc = torch.empty(ids_Bc.shape, device=users_BK.device)
    for start in range(0, num_users, at_once):
        part = slice(start, min(start + at_once, num_users))
        rows_bcK, products_bcK = (buffer[: part.stop - start] for buffer in (rows, products))
        torch.index_select(items_nK, 0, ids_Bc[part].reshape(-1), out=rows_bcK.view(-1, width))
        products_bcK.copy_(rows_bcK)
        products_bcK *= users_BK[part, None].double()
        exact_Bc[part] = products_bcK.sum(2)
    return exact_Bc


def _rows_of(seen: tuple[torch.Tensor, torch.Tensor], rows_F: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The CSR pair of some of its rows."""
    offsets, columns = seen
    lengths_F = offsets[rows_F + 1] - offsets[rows_F]
    starts_F = torch.cat([lengths_F.new_zeros(1), lengths_F.cumsum(0)])
    within_E = torch.arange(int(starts_F[-1]), device=columns.device) - starts_F[:-1].repeat_interleave(lengths_F)
    return starts_F, columns[offsets[rows_F].repeat_interleave(lengths_F) + within_E]
