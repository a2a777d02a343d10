"""The objectives over item blocks: BPR, sampled (paper) or full catalog, and softmax (docs/algorithm.md, section 2).

An objective says which items a step touches, returns this rank's partial loss, and knows the product of its
Hessian in the content rows with a direction (section 4.1).

    B  pairs of the global batch    n  active items of this rank    K = 2d, [identity | content]
"""

from typing import Protocol

import torch
import torch.nn.functional as F

from uatmc_dist.config import TrainingConfig
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.parallel.item_parallel import (
    ActiveRows,
    ItemBlock,
    batch_slice,
    logsumexp_over_ranks,
    owned,
    scores_at,
    sum_over_ranks,
)
from uatmc_kernels import (
    bpr_all_items,
    bpr_all_items_hvp,
    logsumexp_all_items,
    softmax_all_items_hvp,
    softmax_mean_change,
)


class Objective(Protocol):
    def rows(self, batch: Batch) -> ActiveRows: ...

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        """The item lists of the batch whose embedding norms are regularised."""
        ...

    def loss(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        rows: ActiveRows,
        handicap_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """This rank's partial of the global loss; differentiable twice.

        `handicap_B` is taken off each positive's score, which raises the scores of all negatives by as much.
        """
        ...

    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        """Rows n of d2L/dc2 . tangent, complete on this rank. Collective, no graph."""
        ...


def _content(rows_nK: torch.Tensor, tangent_nd: torch.Tensor) -> tuple[torch.Tensor, slice]:
    width = rows_nK.shape[1]
    columns = slice(width - tangent_nd.shape[1], width)
    return rows_nK[:, columns], columns


class _AllItems:
    """What the objectives share in which every item is a negative of every pair."""

    def __init__(
        self,
        block: ItemBlock,
        known: KnownPositives,
        exclude_known_positives: bool,
        score_dtype: torch.dtype | None = None,
    ) -> None:
        """`score_dtype`: what embeddings are rounded to before they are scored; None leaves them as they are."""
        self._block, self._known, self._exclude = block, known, exclude_known_positives
        self._score_dtype = score_dtype
        self._rows = ActiveRows(torch.arange(block.lo, block.hi), block.lo)

    def rows(self, batch: Batch) -> ActiveRows:
        return self._rows

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.positives_B]

    def _seen(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self._exclude:
            return None
        offsets, columns = self._known.within(batch.users_B, self._block.lo, self._block.hi)
        return offsets.to(device, non_blocking=True), columns.to(device, non_blocking=True)

    def _rounded(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._score_dtype is None else rows.to(self._score_dtype)


class FullCatalog(_AllItems):
    """BPR: the mean over pairs and negatives of softplus(negative's score - positive's)."""

    def _num_terms(self, batch: Batch) -> int:
        if not self._exclude:
            return len(batch) * (self._block.num_items - 1)
        return int((self._block.num_items - self._known.num_items_of(batch.users_B)).sum())

    def loss(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        rows: ActiveRows,
        handicap_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        users_BK, items_nK = self._rounded(users_BK), self._rounded(items_nK)
        index_B = rows.index_of(batch.positives_B)
        positive_B = sum_over_ranks(scores_at(users_BK, items_nK, index_B))
        if handicap_B is not None:
            positive_B = positive_B - handicap_B
        device = users_BK.device
        loss_B = bpr_all_items(users_BK, items_nK, positive_B, index_B.to(device), seen=self._seen(batch, device))
        return loss_B.sum() / self._num_terms(batch)

    @torch.no_grad()
    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        users_BK, items_nK, tangent_nd = map(self._rounded, (users_BK, items_nK, tangent_nd))
        content_Bd, columns = _content(users_BK, tangent_nd)
        index_B = rows.index_of(batch.positives_B)
        shares = torch.stack([scores_at(users_BK, items_nK, index_B), scores_at(content_Bd, tangent_nd, index_B)])
        positive_B, tangent_positive_B = sum_over_ranks(shares)
        device = users_BK.device
        hvp_nd, row_sums_B = bpr_all_items_hvp(
            users_BK,
            items_nK,
            positive_B,
            index_B.to(device),
            tangent_nd,
            tangent_positive_B,
            columns,
            seen=self._seen(batch, device),
        )
        row_sums_B = sum_over_ranks(row_sums_B)
        mine, index = owned(index_B, device)
        hvp_nd.index_add_(0, index, row_sums_B[mine, None] * content_Bd[mine], alpha=-1)
        return hvp_nd.div_(self._num_terms(batch))


class Softmax(_AllItems):
    """Cross-entropy of the positive among all items: softplus(log-sum-exp of the others - the positive's score)."""

    def __init__(
        self,
        block: ItemBlock,
        known: KnownPositives,
        exclude_known_positives: bool,
        score_dtype: torch.dtype | None = None,
        item_offset_N: torch.Tensor | None = None,
    ) -> None:
        """`item_offset_N`, of the whole catalog, is added to every score of an item (logit adjustment)."""
        super().__init__(block, known, exclude_known_positives, score_dtype)
        self._offset_N = item_offset_N
        self._offset_n = None if item_offset_N is None else item_offset_N[block.lo : block.hi]

    def _on(self, device: torch.device) -> torch.Tensor | None:
        if self._offset_n is not None:
            self._offset_n = self._offset_n.to(device)  # once
        return self._offset_n

    def _raised(self, scores_B: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The positives' scores with their offsets."""
        if self._offset_N is None:
            return scores_B
        return scores_B + self._offset_N[batch.positives_B].to(scores_B.device, non_blocking=True)

    def loss(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        rows: ActiveRows,
        handicap_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        users_BK, items_nK = self._rounded(users_BK), self._rounded(items_nK)
        index_B = rows.index_of(batch.positives_B)
        positive_B = self._raised(sum_over_ranks(scores_at(users_BK, items_nK, index_B)), batch)
        if handicap_B is not None:
            positive_B = positive_B - handicap_B
        device = users_BK.device
        others_B = self._others(users_BK, items_nK, index_B.to(device), self._seen(batch, device))
        losses_B = F.softplus(others_B - positive_B)
        # Every rank knows all losses; each takes its own share of the pairs into the sum.
        return losses_B[batch_slice(len(batch))].sum() / len(batch)

    def _others(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        skip_B: torch.Tensor,
        seen: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """log-sum-exp [B] of the scores of all items but the positive, complete on every rank."""
        offset_n = self._on(users_BK.device)
        return logsumexp_over_ranks(logsumexp_all_items(users_BK, items_nK, skip_B, seen=seen, item_offset_N=offset_n))

    @torch.no_grad()
    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        users_BK, items_nK, tangent_nd = map(self._rounded, (users_BK, items_nK, tangent_nd))
        content_Bd, columns = _content(users_BK, tangent_nd)
        index_B, device = rows.index_of(batch.positives_B), users_BK.device
        shares = torch.stack([scores_at(users_BK, items_nK, index_B), scores_at(content_Bd, tangent_nd, index_B)])
        positive_B, positive_change_B = sum_over_ranks(shares)
        positive_B = self._raised(positive_B, batch)
        skip_B, seen = index_B.to(device), self._seen(batch, device)
        total_B = torch.logaddexp(self._others(users_BK, items_nK, skip_B, seen), positive_B)
        given, offset_n = (users_BK, items_nK, total_B, skip_B, tangent_nd), self._on(device)
        mean_B = sum_over_ranks(softmax_mean_change(*given, columns, seen=seen, item_offset_N=offset_n))
        positive_share_B = torch.exp(positive_B - total_B)
        mean_B = mean_B + positive_share_B * positive_change_B
        hvp_nd = softmax_all_items_hvp(*given, mean_B, columns, seen=seen, item_offset_N=offset_n)
        mine, index = owned(index_B, device)
        pull_B = positive_share_B * (positive_change_B - mean_B)
        hvp_nd.index_add_(0, index, pull_B[mine, None] * content_Bd[mine])
        return hvp_nd.div_(len(batch))


def popularity_offset(training: TrainingConfig, known: KnownPositives) -> torch.Tensor | None:
    """Logit adjustment [N] of every item in the softmax, from its training interactions; None without one."""
    if not training.popularity_correction:
        return None
    counts_N = known.counts_of_items()
    if training.popularity_correction_cap is not None:
        counts_N = counts_N.clamp(max=training.popularity_correction_cap)
    return training.popularity_correction * torch.log1p(counts_N.float())


class Sampled:
    """One uniform negative a pair: only the rows of the batch are touched."""

    def __init__(self, block: ItemBlock) -> None:
        self._block = block

    def rows(self, batch: Batch) -> ActiveRows:
        touched = torch.unique(torch.cat([batch.positives_B, batch.negatives_B]))
        first, last = torch.searchsorted(touched, torch.tensor([self._block.lo, self._block.hi])).tolist()
        return ActiveRows(touched[first:last], first)

    def ranked_items(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.positives_B, batch.negatives_B]

    def _differences(self, users: torch.Tensor, rows_n: torch.Tensor, batch: Batch, rows: ActiveRows) -> torch.Tensor:
        """<user, positive row> - <user, negative row>, complete on every rank."""
        positive_B = scores_at(users, rows_n, rows.index_of(batch.positives_B))
        return sum_over_ranks(positive_B - scores_at(users, rows_n, rows.index_of(batch.negatives_B)))

    def loss(
        self,
        users_BK: torch.Tensor,
        items_nK: torch.Tensor,
        batch: Batch,
        rows: ActiveRows,
        handicap_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        margins_B = self._differences(users_BK, items_nK, batch, rows)
        if handicap_B is not None:
            margins_B = margins_B - handicap_B
        # Every rank knows all margins; each takes its own share of the pairs into the loss.
        return F.softplus(-margins_B[batch_slice(len(batch))]).sum() / len(batch)

    @torch.no_grad()
    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        content_Bd, _ = _content(users_BK, tangent_nd)
        sigma_B = torch.sigmoid(self._differences(users_BK, items_nK, batch, rows))
        change_B = self._differences(content_Bd, tangent_nd, batch, rows)
        pull_Bd = (sigma_B * (1 - sigma_B) * change_B / len(batch))[:, None] * content_Bd
        hvp_nd = torch.zeros_like(tangent_nd)
        for items_B, sign in ((batch.positives_B, 1), (batch.negatives_B, -1)):
            mine, index = owned(rows.index_of(items_B), users_BK.device)
            hvp_nd.index_add_(0, index, pull_Bd[mine], alpha=sign)
        return hvp_nd
