"""The loss terms beside the objective: the size of the embeddings, and InfoNCE between the modalities
(docs/algorithm.md, section 2)."""

import torch
import torch.nn.functional as F

from uatmc_dist.data.batches import Batch
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock, gather_rows, num_ranks, own_share, sum_for_all
from uatmc_dist.parallel.upload import upload


def embedding_size(
    norm: str, users_BK: torch.Tensor, identity_nd: torch.Tensor, item_lists: list[torch.Tensor], rows: ActiveRows
) -> torch.Tensor:
    """This rank's partial of the regulariser of the global batch's users and items, an item as often as it occurs.

    frobenius: |users| + sum over item lists of |rows|, Frobenius norms. squared: the sum of their squares.
    """
    row_squares_n = identity_nd.square().sum(1)
    squares = [own_share(users_BK).square().sum()]
    for items_B in item_lists:
        squares.append(row_squares_n[rows.places(items_B, row_squares_n.device).index_M].sum())
    if norm == "squared":
        return torch.stack(squares).sum()
    # Added, not clamped: it changes no number that is not as small, and what has norm 0 has gradient 0.
    norms = (sum_for_all(torch.stack(squares)) + torch.finfo(torch.float32).tiny).sqrt()
    return norms.sum() if num_ranks() == 1 else norms.sum() / num_ranks()


def contrastive(
    v_nd: torch.Tensor,
    t_nd: torch.Tensor,
    log_temperature: torch.Tensor,
    batch: Batch,
    rows: ActiveRows,
    block: ItemBlock,
) -> torch.Tensor:
    """This rank's partial of the symmetric InfoNCE between v and t over the distinct positives of the batch.

    Rank r scores its own M_r items against all M: M_r x M numbers, whatever the size of the catalog.
    """
    items_M = torch.unique(batch.positives_B)
    counts_R = torch.bincount(items_M // block.size, minlength=block.world_size).tolist()
    first = sum(counts_R[: block.rank])
    own_m = slice(first, first + counts_R[block.rank])
    index_m = upload(rows.index_of(items_M[own_m]), v_nd.device)
    v_md, t_md = v_nd[index_m], t_nd[index_m]
    both_Md = gather_rows(torch.cat([v_md, t_md], dim=1), counts_R)
    v_Md, t_Md = both_Md.split(v_nd.shape[1], dim=1)
    target_m = torch.arange(own_m.start, own_m.stop, device=v_nd.device)
    scale = log_temperature.float().neg().exp()
    both_ways = F.cross_entropy(v_md @ t_Md.T * scale, target_m, reduction="sum") + F.cross_entropy(
        t_md @ v_Md.T * scale, target_m, reduction="sum"
    )
    return both_ways / (2 * len(items_M))
