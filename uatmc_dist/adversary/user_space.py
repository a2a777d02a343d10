"""Coordination in user space for any backbone (docs/algorithm.md, section 4.3): what the two perturbations, each for
itself, do to the users' scores of an item, and the cosine of these two shifts over the users.

    B  pairs of the global batch    n  active items of this rank
"""

from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint

from uatmc_dist.models.backbone import Scored

_NEARLY_NOTHING = 1e-30
"""What is smaller has no direction: its inverse would be too large for float32 to multiply with."""


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
    root_Bn = to_scale(weights_Bn, 0).sqrt()
    visual_Bn, text_Bn = (to_scale(root_Bn * (moved - scores), 0) for moved in (of_visual, of_text))
    product_n = visual_Bn.square().sum(0) * text_Bn.square().sum(0)
    kept = product_n > 0
    return torch.where(kept, (visual_Bn * text_Bn).sum(0) / product_n.where(kept, 1.0).sqrt(), 0.0).sum()


def to_scale(values: torch.Tensor, dim: int) -> torch.Tensor:
    """What lies along `dim` divided by its largest number, which no cosine depends on: squares of small ones must not
    vanish, nor their inverses overflow. Nearly nothing is nothing."""
    largest = values.detach().abs().amax(dim, keepdim=True)
    is_there = largest > _NEARLY_NOTHING
    return torch.where(is_there, values / largest.where(is_there, 1.0), 0.0)
