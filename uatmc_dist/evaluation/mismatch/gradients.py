"""The gradients of the two modalities in item space. Rows [n, d] of this rank's items; every function is collective."""

from typing import Any

import torch
import torch.nn.functional as F

from uatmc_dist.evaluation.mismatch.summary import BINS, histogram, summary
from uatmc_dist.evaluation.mismatch.training_pairs import TrainingPairs
from uatmc_dist.parallel.item_parallel import gather_rows, num_ranks, sum_over_ranks

Gradients = tuple[torch.Tensor, torch.Tensor]


def _moved(gradients: Gradients) -> torch.Tensor:
    visual_nd, text_nd = gradients
    return (visual_nd != 0).any(1) & (text_nd != 0).any(1)


def items_without_gradient(gradients: Gradients) -> int:
    return int(sum_over_ranks((~_moved(gradients)).sum()))


def cosines(pairs: TrainingPairs, gradients: Gradients) -> dict[str, Any]:
    """Of the visual and the textual gradient, by item."""
    moved_N = pairs.everywhere(_moved(gradients))
    cosine_N = pairs.everywhere(F.cosine_similarity(*gradients, dim=1, eps=0.0))[moved_N]
    return {**summary(cosine_N), "histogram": histogram(cosine_N, BINS)}


def single_matrix_residual(visual_nd: torch.Tensor, text_nd: torch.Tensor) -> float | None:
    """How much of the textual gradients no single matrix M makes of the visual ones: the least |T - V M| / |T|.

    Zero where both are views of one vector for each item, as under linear fusion with one content half of the user;
    sqrt(1 - d/N) where they have nothing in common. Each item counts alike: its two rows are divided by their joint
    length. None for fewer than two items a column.
    """
    both_n2d = torch.cat([visual_nd, text_nd], dim=1).double()
    both_n2d = both_n2d[both_n2d.norm(dim=1) > 0]
    dim = visual_nd.shape[1]
    if int(sum_over_ranks(torch.tensor(len(both_n2d), device=both_n2d.device))) < 2 * dim:
        return None
    # The triangle of a QR factorisation has all inner products of the columns, and so has that of the ranks' triangles.
    triangle = torch.linalg.qr(F.normalize(both_n2d, dim=1), mode="r").R
    triangles = gather_rows(F.pad(triangle, (0, 0, 0, 2 * dim - len(triangle))), [2 * dim] * num_ranks())
    visual, text = triangles.cpu().split(dim, dim=1)  # CUDA's lstsq has no driver for columns that depend on each other
    best = torch.linalg.lstsq(visual, text, driver="gelsd").solution
    return float((text - visual @ best).norm() / text.norm())


def turned(pairs: TrainingPairs, gradients: Gradients, adv_align_weight: float) -> dict[str, float]:
    """How far coordination in item space turns the direction of a step, and what it weighs: share of the items'
    modalities turned by more than some angles, and |lambda d mean-cosine| over |dL|, by row."""
    leaves = [pairs.view.v_nd, pairs.view.t_nd]
    slopes = torch.autograd.grad(pairs.clean_loss, leaves, create_graph=True)
    moved_n = _moved(gradients)
    moved_N, index_n = pairs.everywhere(moved_n), moved_n.nonzero().squeeze(1)
    cosine_n = F.cosine_similarity(*(rows_nd[index_n] for rows_nd in slopes), dim=1, eps=0.0)
    of_cosine = torch.autograd.grad(cosine_n.sum() / pairs.model.block.num_items, leaves, retain_graph=True)
    degrees, weights = [], []
    for gradient_nd, turning_nd in zip(gradients, of_cosine, strict=True):
        turning_nd = adv_align_weight * turning_nd
        cosine_n = F.cosine_similarity(gradient_nd, gradient_nd + turning_nd, dim=1, eps=0.0)
        degrees_n = torch.rad2deg(torch.acos(cosine_n.nan_to_num(1.0).clamp(-1, 1)))
        degrees.append(pairs.everywhere(degrees_n)[moved_N])
        weights.append(pairs.everywhere(turning_nd.norm(dim=1) / gradient_nd.norm(dim=1))[moved_N])
    degrees_2N = torch.cat(degrees)
    shares = {
        f"share_turned_by_more_than_{angle}_degrees": float((degrees_2N > angle).double().mean())
        for angle in (1, 30, 90)
    }
    return {**shares, "coordination_over_gradient": summary(torch.cat(weights))}  # type: ignore[dict-item]
