"""BPR in which every item is a negative of every pair."""

from collections.abc import Iterator

import torch

from uatmc_dist.data.batches import Batch
from uatmc_dist.models.objectives.base import AllItems, content_columns
from uatmc_dist.parallel.item_parallel import ActiveRows, scores_at, sum_over_ranks
from uatmc_kernels import bpr_all_items, bpr_all_items_hvp


class FullCatalog(AllItems):
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
        device = users_BK.device
        places = rows.places(batch.positives_B, device)
        positive_B = sum_over_ranks(scores_at(users_BK, items_nK, places))
        if handicap_B is not None:
            positive_B = positive_B - handicap_B
        loss_B = bpr_all_items(users_BK, items_nK, positive_B, places.index_B, seen=self._seen(batch, device))
        return loss_B.sum() / self._num_terms(batch)

    @torch.no_grad()
    def content_hvp(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows, tangent_nd: torch.Tensor
    ) -> torch.Tensor:
        users_BK, items_nK, tangent_nd = map(self._rounded, (users_BK, items_nK, tangent_nd))
        content_Bd, columns = content_columns(users_BK, tangent_nd)
        device = users_BK.device
        places = rows.places(batch.positives_B, device)
        shares = torch.stack([scores_at(users_BK, items_nK, places), scores_at(content_Bd, tangent_nd, places)])
        positive_B, tangent_positive_B = sum_over_ranks(shares)
        hvp_nd, row_sums_B = bpr_all_items_hvp(
            users_BK,
            items_nK,
            positive_B,
            places.index_B,
            tangent_nd,
            tangent_positive_B,
            columns,
            seen=self._seen(batch, device),
        )
        row_sums_B = sum_over_ranks(row_sums_B)
        mine = places.mine_M
        hvp_nd.index_add_(0, places.index_M, row_sums_B[mine, None] * content_Bd[mine], alpha=-1)
        return hvp_nd.div_(self._num_terms(batch))

    def score_weights(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        places = rows.places(batch.positives_B, users_BK.device)
        positive_B = sum_over_ranks(scores_at(users_BK.detach(), items_nK.detach(), places)).requires_grad_()
        seen = self._seen(batch, users_BK.device)
        with torch.enable_grad():
            losses_B = bpr_all_items(users_BK.detach(), items_nK.detach(), positive_B, places.index_B, seen=seen)
            (minus_sums_B,) = torch.autograd.grad(losses_B.sum(), positive_B)
        sums_B, num_terms = sum_over_ranks(-minus_sums_B), self._num_terms(batch)
        positive_B = positive_B.detach()
        weigh = lambda tile, scores_Bn: scores_Bn.sub_(positive_B[:, None]).sigmoid_().div_(num_terms)  # noqa: E731
        return self._weights(users_BK.detach(), items_nK.detach(), batch, weigh, places, sums_B / num_terms)
