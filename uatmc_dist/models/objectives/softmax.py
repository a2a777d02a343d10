"""Cross-entropy of the positive among all items."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from uatmc_dist.config import TrainingConfig
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.models.objectives.base import AllItems, content_columns
from uatmc_dist.parallel.item_parallel import (
    ActiveRows,
    ItemBlock,
    logsumexp_over_ranks,
    own_share,
    scores_at,
    sum_over_ranks,
)
from uatmc_dist.parallel.upload import upload
from uatmc_kernels import logsumexp_all_items, softmax_all_items_hvp, softmax_mean_change


class Softmax(AllItems):
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
            self._offset_n = upload(self._offset_n, device)  # once
        return self._offset_n

    def _raised(self, scores_B: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The positives' scores with their offsets."""
        if self._offset_N is None:
            return scores_B
        return scores_B + upload(self._offset_N[batch.positives_B], scores_B.device)

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
        positive_B = self._raised(sum_over_ranks(scores_at(users_BK, items_nK, places)), batch)
        if handicap_B is not None:
            positive_B = positive_B - handicap_B
        others_B = self._others(users_BK, items_nK, places.index_B, self._seen(batch, device))
        losses_B = F.softplus(others_B - positive_B)
        # Every rank knows all losses; each takes its own share of the pairs into the sum.
        return own_share(losses_B).sum() / len(batch)

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
        content_Bd, columns = content_columns(users_BK, tangent_nd)
        device = users_BK.device
        places = rows.places(batch.positives_B, device)
        shares = torch.stack([scores_at(users_BK, items_nK, places), scores_at(content_Bd, tangent_nd, places)])
        positive_B, positive_change_B = sum_over_ranks(shares)
        positive_B = self._raised(positive_B, batch)
        skip_B, seen = places.index_B, self._seen(batch, device)
        total_B = torch.logaddexp(self._others(users_BK, items_nK, skip_B, seen), positive_B)
        given, offset_n = (users_BK, items_nK, total_B, skip_B, tangent_nd), self._on(device)
        mean_B = sum_over_ranks(softmax_mean_change(*given, columns, seen=seen, item_offset_N=offset_n))
        positive_share_B = torch.exp(positive_B - total_B)
        mean_B = mean_B + positive_share_B * positive_change_B
        hvp_nd = softmax_all_items_hvp(*given, mean_B, columns, seen=seen, item_offset_N=offset_n)
        mine = places.mine_M
        pull_B = positive_share_B * (positive_change_B - mean_B)
        hvp_nd.index_add_(0, places.index_M, pull_B[mine, None] * content_Bd[mine])
        return hvp_nd.div_(len(batch))

    @torch.no_grad()
    def score_weights(
        self, users_BK: torch.Tensor, items_nK: torch.Tensor, batch: Batch, rows: ActiveRows
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        users_BK, items_nK = users_BK.detach(), items_nK.detach()
        device = users_BK.device
        places, offset_n = rows.places(batch.positives_B, device), self._on(device)
        positive_B = self._raised(sum_over_ranks(scores_at(users_BK, items_nK, places)), batch)
        seen = self._seen(batch, device)
        total_B = torch.logaddexp(self._others(users_BK, items_nK, places.index_B, seen), positive_B)

        def weigh(tile: slice, scores_Bn: torch.Tensor) -> torch.Tensor:
            raised_Bn = scores_Bn if offset_n is None else scores_Bn.add_(offset_n[tile])
            return raised_Bn.sub_(total_B[:, None]).exp_().div_(len(batch))

        positive_weight_B = -torch.expm1(positive_B - total_B) / len(batch)
        return self._weights(users_BK, items_nK, batch, weigh, places, positive_weight_B)


def popularity_offset(training: TrainingConfig, known: KnownPositives) -> torch.Tensor | None:
    """Logit adjustment [N] of every item in the softmax, from its training interactions; None without one."""
    if not training.popularity_correction:
        return None
    counts_N = known.counts_of_items()
    if training.popularity_correction_cap is not None:
        counts_N = counts_N.clamp(max=training.popularity_correction_cap)
    return training.popularity_correction * torch.log1p(counts_N.float())
