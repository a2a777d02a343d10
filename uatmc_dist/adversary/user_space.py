"""Coordination in user space for any backbone (docs/algorithm.md, section 4.3): what the two perturbations, each for
itself, do to the users' scores of an item, and the cosine of these two shifts over the users.

    B  pairs of the global batch    n  active items of this rank
"""

from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint

from uatmc_dist.models.backbone import Scored


def sum_of_user_cosines(
    clean: Scored, visual: Scored, text: Scored, weights: Iterator[tuple[slice, torch.Tensor]]
) -> torch.Tensor:
    """Sum over this rank's items of the cosine of s(visual) - s(clean) and s(text) - s(clean) over pairs, weighted by
    an objective's score weights. Differentiable in `visual` and `text`; tiles of scores are computed again for it,
    never kept. An item whose scores do not shift has no cosine."""
    base = Scored(clean.users_BK.detach(), clean.items_nK.detach())
    total = visual.users_BK.new_zeros(())
    for tile, weights_Bn in weights:
        rows = (scored.items_nK[tile] for scored in (base, visual, text))
        users = (scored.users_BK for scored in (base, visual, text))
        total = total + checkpoint(_tile, weights_Bn, *users, *rows, use_reentrant=False)
    return total


def _tile(weights_Bn: torch.Tensor, *embeddings: torch.Tensor) -> torch.Tensor:
    users, items = embeddings[:3], embeddings[3:]
    scores, of_visual, of_text = (u @ i.T for u, i in zip(users, items, strict=True))
    visual_Bn, text_Bn = of_visual - scores, of_text - scores
    inner = lambda a, b: (weights_Bn * a * b).sum(0)  # noqa: E731
    product_n = inner(visual_Bn, visual_Bn) * inner(text_Bn, text_Bn)
    kept = product_n > 0
    return torch.where(kept, inner(visual_Bn, text_Bn) / product_n.where(kept, 1.0).sqrt(), 0.0).sum()
