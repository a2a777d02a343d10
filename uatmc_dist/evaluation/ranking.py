"""Full ranking over all items with the user's training items masked; streaming, never U x N.

B  users ranked at a time    k  length of the ranking    n  items of this rank
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from uatmc_dist.config import METRIC_KS
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.exact_topk import ExactTopk
from uatmc_dist.evaluation.kept import KeptLists
from uatmc_dist.models.backbone import Ranking
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.parallel.item_parallel import ItemBlock, merge_topk

UserRows = Callable[[torch.Tensor], torch.Tensor]
Best = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""Global user ids [B] and k -> (scores_Bk, ids_Bk) of their best items, best first, training items left out."""
Progress = Callable[[int, int], None]


class RankedUsers(NamedTuple):
    """The best items of some users, best first; item -1 and score -inf where a user has no more."""

    users_B: torch.Tensor
    items_Bk: torch.Tensor
    scores_Bk: torch.Tensor


def rank_split(
    user_rows: UserRows,
    items_nK: torch.Tensor,
    block: ItemBlock,
    known: KnownPositives,
    split: tuple[np.ndarray, np.ndarray],
    num_users: int,
    users_per_batch: int,
    progress: Progress = lambda done, total: None,
    on_ranked: Callable[[RankedUsers], None] | None = None,
    kept: KeptLists | None = None,
) -> dict[str, float]:
    """Recall, NDCG, precision and MAP at 5, 10, 20 and 50, as means over the users of the split.

    user_rows   global user ids [B] -> embeddings [B, K] on every rank
    items_nK    this rank's block of item embeddings
    known       training items, masked
    progress    told of (users done, all users)
    on_ranked   given the lists themselves
    kept        lists that an interrupted ranking has made, and those that this one makes

    Scores are computed in float64 and compared in float32 with ties broken by item, so that the figures are
    the same on any number of ranks. Collective.
    """
    best_here = ExactTopk(items_nK)

    def best(users_B: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen = known.within(users_B, block.lo, block.hi)
        seen = (seen[0].to(items_nK.device), seen[1].to(items_nK.device))
        scores_Bk, ids_Bk = best_here(user_rows(users_B), k, seen)
        return merge_topk(scores_Bk.cpu(), torch.where(ids_Bk >= 0, ids_Bk + block.lo, -1).cpu())

    return rank_lists(best, split, num_users, block.num_items, users_per_batch, progress, on_ranked, kept)


def rank_model(
    model: TrainedModel,
    catalog: Catalog,
    split: str,
    users_per_batch: int,
    progress: Progress = lambda done, total: None,
    on_ranked: Callable[[RankedUsers], None] | None = None,
    kept: KeptLists | None = None,
) -> dict[str, float]:
    """`rank_catalog` of a model that is here as a whole."""
    whole = Ranking(lambda users_B: model.users_UK[users_B], model.items())
    block = ItemBlock(catalog.num_items, 0, 1)
    return rank_catalog(whole, block, catalog, split, users_per_batch, progress, on_ranked, kept)


def rank_catalog(
    ranking: Ranking,
    block: ItemBlock,
    catalog: Catalog,
    split: str,
    users_per_batch: int,
    progress: Progress = lambda done, total: None,
    on_ranked: Callable[[RankedUsers], None] | None = None,
    kept: KeptLists | None = None,
) -> dict[str, float]:
    """`rank_split` of a catalog's split, for this rank's block of its items. Collective."""
    return rank_split(
        ranking.user_rows,
        ranking.items_nK,
        block,
        KnownPositives.of_training(catalog),
        catalog.split(split),
        catalog.num_users,
        users_per_batch,
        progress,
        on_ranked,
        kept,
    )


def rank_lists(
    best: Best,
    split: tuple[np.ndarray, np.ndarray],
    num_users: int,
    num_items: int,
    users_per_batch: int,
    progress: Progress = lambda done, total: None,
    on_ranked: Callable[[RankedUsers], None] | None = None,
    kept: KeptLists | None = None,
) -> dict[str, float]:
    """The metrics of `rank_split` for lists that anything makes; `best` masks the training items itself."""
    relevant = KnownPositives(*split, num_users, num_items)
    users = torch.from_numpy(np.unique(split[0]))
    per_user: dict[str, list[torch.Tensor]] = {}
    kept = kept or KeptLists(None)
    stop = 0
    while stop < len(users):
        start, stop = stop, min(stop + users_per_batch, len(users))
        users_B = users[start:stop]
        found = kept.lists(start, stop)
        scores_Bk, ids_Bk = found or best(users_B, max(METRIC_KS))
        if found is None:
            kept.add(start, scores_Bk, ids_Bk)
        if on_ranked is not None:
            on_ranked(RankedUsers(users_B, ids_Bk, scores_Bk))
        hits_Bk = relevant.contains(users_B[:, None].expand_as(ids_Bk).reshape(-1), ids_Bk.reshape(-1))
        hits_Bk = hits_Bk.view_as(ids_Bk) & (ids_Bk >= 0)
        for name, values_B in metrics_of_hits(hits_Bk, relevant.num_items_of(users_B)).items():
            per_user.setdefault(name, []).append(values_B)
        progress(stop, len(users))
    # Exact sums: the mean does not depend on how many users were ranked at a time.
    return {name: math.fsum(torch.cat(values).tolist()) / len(users) for name, values in per_user.items()}


def write_lists(path: Path, ranked: list[RankedUsers]) -> None:
    """Parquet with one row a user: user, items (best first), scores. Raises UserError where it cannot be written."""
    users = np.concatenate([block.users_B.numpy() for block in ranked])
    items, scores = [], []
    for block in ranked:
        for items_k, scores_k in zip(block.items_Bk.numpy(), block.scores_Bk.numpy(), strict=True):
            items.append(items_k[items_k >= 0])
            scores.append(scores_k[items_k >= 0])
    try:
        pq.write_table(pa.table({"user": users, "items": items, "scores": scores}), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from None


def metrics_of_hits(hits_Bk: torch.Tensor, num_relevant_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per-user metrics from the ranked hits; definitions as in MMRec.

    recall@k: hits / relevant. precision@k: hits / k. ndcg@k: DCG over the DCG of min(relevant, k) hits on top.
    map@k: precision at each hit, summed, over min(relevant, k).
    """
    hits_Bk = hits_Bk.double()
    positions_k = torch.arange(1, hits_Bk.shape[1] + 1, dtype=torch.float64)
    discounts_k = 1 / torch.log2(positions_k + 1)
    num_hits_Bk = hits_Bk.cumsum(1)
    gains_Bk = (hits_Bk * discounts_k).cumsum(1)
    ideal_k = discounts_k.cumsum(0)
    precisions_Bk = (hits_Bk * num_hits_Bk / positions_k).cumsum(1)
    metrics = {}
    for k in METRIC_KS:
        reachable_B = num_relevant_B.clamp(max=k)
        metrics[f"recall@{k}"] = num_hits_Bk[:, k - 1] / num_relevant_B
        metrics[f"ndcg@{k}"] = gains_Bk[:, k - 1] / ideal_k[reachable_B - 1]
        metrics[f"precision@{k}"] = num_hits_Bk[:, k - 1] / k
        metrics[f"map@{k}"] = precisions_Bk[:, k - 1] / reachable_B
    return metrics
