"""The gradients of the two modalities in item space. Rows [N, d]; an item is a row."""

from typing import Any

import torch
import torch.nn.functional as F

from uatmc_dist.evaluation.mismatch.summary import BINS, histogram, summary
from uatmc_dist.evaluation.mismatch.training_pairs import TrainingPairs

Gradients = tuple[torch.Tensor, torch.Tensor]


def _moved(gradients: Gradients) -> torch.Tensor:
    visual_Nd, text_Nd = gradients
    return (visual_Nd != 0).any(1) & (text_Nd != 0).any(1)


def items_without_gradient(gradients: Gradients) -> int:
    return int((~_moved(gradients)).sum())


def cosines(gradients: Gradients) -> dict[str, Any]:
    """Of the visual and the textual gradient, by item."""
    kept_N = _moved(gradients)
    cosine_N = F.cosine_similarity(*(rows_Nd[kept_N] for rows_Nd in gradients), dim=1, eps=0.0)
    return {**summary(cosine_N), "histogram": histogram(cosine_N, BINS)}


def single_matrix_residual(visual_Nd: torch.Tensor, text_Nd: torch.Tensor) -> float | None:
    """How much of the textual gradients no single matrix M makes of the visual ones: the least |T - V M| / |T|.

    Zero where both are views of one vector for each item, as under linear fusion with one content half of the user;
    sqrt(1 - d/N) where they have nothing in common. Each item counts alike: its two rows are divided by their joint
    length. None for fewer than two items a column.
    """
    both_N2d = torch.cat([visual_Nd, text_Nd], dim=1).double()
    both_N2d = both_N2d[both_N2d.norm(dim=1) > 0]
    dim = visual_Nd.shape[1]
    if len(both_N2d) < 2 * dim:
        return None
    visual, text = F.normalize(both_N2d, dim=1).split(dim, dim=1)
    best = torch.linalg.lstsq(visual, text, driver="gelsd").solution
    return float((text - visual @ best).norm() / text.norm())


def turned(pairs: TrainingPairs, gradients: Gradients, adv_align_weight: float) -> dict[str, float]:
    """How far coordination in item space turns the direction of a step, and what it weighs: share of the items'
    modalities turned by more than some angles, and |lambda d mean-cosine| over |dL|, by row."""
    leaves = [pairs.view.v_nd, pairs.view.t_nd]
    slopes = torch.autograd.grad(pairs.clean_loss, leaves, create_graph=True)
    kept_N = _moved(gradients).nonzero().squeeze(1)
    cosine_N = F.cosine_similarity(*(rows_Nd[kept_N] for rows_Nd in slopes), dim=1, eps=0.0)
    of_cosine = torch.autograd.grad(cosine_N.sum() / len(pairs.view.v_nd), leaves, retain_graph=True)
    degrees, weights = [], []
    for gradient_Nd, turning_Nd in zip(gradients, of_cosine, strict=True):
        gradient_Nd, turning_Nd = gradient_Nd[kept_N], adv_align_weight * turning_Nd[kept_N]
        cosine_N = F.cosine_similarity(gradient_Nd, gradient_Nd + turning_Nd, dim=1, eps=0.0)
        degrees.append(torch.rad2deg(torch.acos(cosine_N.nan_to_num(1.0).clamp(-1, 1))))
        weights.append(turning_Nd.norm(dim=1) / gradient_Nd.norm(dim=1))
    degrees_2N = torch.cat(degrees)
    shares = {
        f"share_turned_by_more_than_{angle}_degrees": float((degrees_2N > angle).double().mean())
        for angle in (1, 30, 90)
    }
    return {**shares, "coordination_over_gradient": summary(torch.cat(weights))}  # type: ignore[dict-item]
