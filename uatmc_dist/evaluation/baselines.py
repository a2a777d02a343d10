"""What a model has to beat: rankings that need little or no training. Each is a `Best` of evaluation/ranking.py.

B  users ranked at a time    k  length of the ranking    N  items    D  width of the features
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog, FeatureFile
from uatmc_dist.evaluation.ranking import Best
from uatmc_dist.seeding import generator
from uatmc_kernels import topk_all_items

_SEED = 20
_ITEMS_AT_A_TIME = 4096
_ROWS_AT_A_TIME = 8192
_PAIRS_AT_A_TIME = 1 << 22
_FLOAT64_UP_TO = 4096
"""Items up to which EASE is solved in float64; above, float32 takes half the time and memory, and lambda keeps the
matrix well-conditioned."""


def at_random(known: KnownPositives, num_users: int) -> Best:
    """Random items, the same at every call: each user reads one shuffled order from a start of their own."""
    order_N = torch.randperm(known.num_items, generator=generator(_SEED, 0))
    return _in_order(order_N, torch.randint(known.num_items, (num_users,), generator=generator(_SEED, 1)), known)


def most_popular(catalog: Catalog, known: KnownPositives) -> Best:
    """The items with most training interactions; equal ones by item."""
    counts_N = torch.from_numpy(np.bincount(catalog.split("train")[1], minlength=catalog.num_items))
    order_N = counts_N.argsort(descending=True, stable=True)
    return _in_order(order_N, torch.zeros(catalog.num_users, dtype=torch.int64), known)


def _in_order(order_N: torch.Tensor, starts_U: torch.Tensor, known: KnownPositives) -> Best:
    """One order of the items for all, read from each user's start on and around; the scores only fall."""

    def best(users_B: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        length = min(len(order_N), k + int(known.num_items_of(users_B).max()))
        ids_Bl = order_N[(starts_U[users_B][:, None] + torch.arange(length)) % len(order_N)]
        seen_Bl = known.contains(users_B[:, None].expand_as(ids_Bl).reshape(-1), ids_Bl.reshape(-1)).view_as(ids_Bl)
        first_Bk = seen_Bl.byte().argsort(dim=1, stable=True)[:, :k]
        ids_Bk = ids_Bl.gather(1, first_Bk).masked_fill(seen_Bl.gather(1, first_Bk), -1)
        ids_Bk = F.pad(ids_Bk, (0, k - ids_Bk.shape[1]), value=-1)
        scores_Bk = -torch.arange(k, dtype=torch.float32).expand_as(ids_Bk)
        return scores_Bk.masked_fill(ids_Bk < 0, float("-inf")), ids_Bk

    return best


class Nearest:
    """Content kNN: the mean of the user's feature rows times the rows of all items.

    A row is the feature less the mean of all items, scaled to length 1; an all-zero feature is a missing one and stays
    zero. Without the mean, which all items share, the figures are lower. Several modalities: their rows side by side.
    Features are read in blocks of items: memory is B x D, not N x D.
    """

    def __init__(self, catalog: Catalog, modalities: Sequence[str], known: KnownPositives) -> None:
        self._features = [catalog.features[name] for name in modalities]
        self._num_items, self._known = catalog.num_items, known
        self._means_D = [self._mean(features) for features in self._features]

    def _mean(self, features: FeatureFile) -> torch.Tensor:
        total_D, count = np.zeros(features.width), 0
        for rows in features.blocks():
            total_D += rows.sum(axis=0, dtype=np.float64)
            count += int(rows.any(axis=1).sum())
        return torch.from_numpy(total_D / max(count, 1)).float()

    def _rows(self, items_E: torch.Tensor) -> torch.Tensor:
        parts = []
        for features, mean_D in zip(self._features, self._means_D, strict=True):
            rows_ED = torch.from_numpy(features.rows(items_E.numpy()))
            centred_ED = rows_ED - mean_D
            # What is left of a row that equals the mean is rounding, not a direction.
            kept_E = centred_ED.norm(dim=1) > 1e-5 * mean_D.norm()
            parts.append(F.normalize(centred_ED, dim=1) * (kept_E & rows_ED.any(dim=1))[:, None])
        return torch.cat(parts, dim=1)

    def _users(self, users_B: torch.Tensor) -> torch.Tensor:
        offsets, items_E = self._known.within(users_B, 0, self._num_items)
        counts_B = offsets.diff()
        rows_E = torch.repeat_interleave(torch.arange(len(users_B)), counts_B)
        sums_BD = torch.zeros(len(users_B), sum(map(len, self._means_D)))
        for start in range(0, len(items_E), _ROWS_AT_A_TIME):
            chunk = slice(start, start + _ROWS_AT_A_TIME)
            sums_BD.index_add_(0, rows_E[chunk], self._rows(items_E[chunk]))
        return sums_BD / counts_B.clamp(min=1)[:, None]

    def __call__(self, users_B: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        users_BD = self._users(users_B)
        scores_Bk = torch.full((len(users_B), k), float("-inf"))
        ids_Bk = torch.full((len(users_B), k), -1)
        for start in range(0, self._num_items, _ITEMS_AT_A_TIME):
            stop = min(start + _ITEMS_AT_A_TIME, self._num_items)
            seen = self._known.within(users_B, start, stop)
            scores, ids = topk_all_items(users_BD, self._rows(torch.arange(start, stop)), k, seen=seen)
            # Stable: of equal scores the lower items, which come first, stay first.
            merged, order = torch.cat([scores_Bk, scores], dim=1).sort(dim=1, descending=True, stable=True)
            ids = torch.cat([ids_Bk, torch.where(ids >= 0, ids + start, -1)], dim=1)
            scores_Bk, ids_Bk = merged[:, :k], ids.gather(1, order[:, :k])
        return scores_Bk, ids_Bk


class Ease:
    """EASE (Steck 2019, arXiv 1905.03375): the linear model of items by items with a zero diagonal that reconstructs
    the training matrix X best: P = (X'X + lambda I)^-1, B = -P / diag(P), in closed form.

    Memory: two N x N matrices, in float64 up to 4,096 items and float32 above; B x N for a batch of users.
    """

    def __init__(self, known: KnownPositives, num_users: int) -> None:
        self._known = known
        self._gram_NN = _co_purchases(known, num_users)

    def fitted(self, weight: float) -> Best:
        """The ranking with lambda = `weight`."""
        num_items = self._known.num_items
        gram_NN = self._gram_NN.to(torch.float64 if num_items <= _FLOAT64_UP_TO else torch.float32, copy=True)
        gram_NN.diagonal().add_(weight)
        factor_NN = torch.linalg.cholesky(gram_NN, out=gram_NN)
        inverse_NN = torch.cholesky_inverse(factor_NN)
        del factor_NN, gram_NN
        weights_NN = inverse_NN.div_(-inverse_NN.diagonal().clone()).float()
        weights_NN.fill_diagonal_(0)
        # Items that nothing speaks for have exactly 0: they are ordered by item.
        slope_N = 1e-13 * torch.arange(num_items, dtype=torch.float32)

        def best(users_B: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            offsets, items_E = self._known.within(users_B, 0, num_items)
            scores_BN = F.embedding_bag(items_E, weights_NN, offsets[:-1], mode="sum").sub_(slope_N)
            rows_E = torch.repeat_interleave(torch.arange(len(users_B)), offsets.diff())
            scores_BN[rows_E, items_E] = float("-inf")
            scores_Bk, ids_Bk = scores_BN.topk(min(k, num_items), dim=1)
            missing = k - scores_Bk.shape[1]
            scores_Bk = F.pad(scores_Bk, (0, missing), value=float("-inf"))
            return scores_Bk, F.pad(ids_Bk, (0, missing), value=-1).masked_fill(scores_Bk.isinf(), -1)

        return best


def _co_purchases(known: KnownPositives, num_users: int) -> torch.Tensor:
    """X'X float32 [N, N]: how many users have both items. Exact: counts stay far below 2^24."""
    num_items = known.num_items
    gram_NN = torch.zeros(num_items, num_items)
    for users_E, items_E in _pairs(known, num_users):
        offsets, others = known.within(users_E, 0, num_items)
        cells = torch.repeat_interleave(items_E, offsets.diff()) * num_items + others
        gram_NN.view(-1).index_add_(0, cells, torch.ones(len(cells)))
    return gram_NN


def _pairs(known: KnownPositives, num_users: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The training pairs, so many at a time that their users have about 4 million items together."""
    offsets, items_E = known.within(torch.arange(num_users), 0, known.num_items)
    users_E = torch.repeat_interleave(torch.arange(num_users), offsets.diff())
    chunk_E = known.num_items_of(users_E).cumsum(0) // _PAIRS_AT_A_TIME
    bounds = [0, *(chunk_E.diff().nonzero().squeeze(1) + 1).tolist(), len(users_E)]
    for first, last in pairwise(bounds):
        yield users_E[first:last], items_E[first:last]
