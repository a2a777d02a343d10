"""Whose gradients they are: what perturbing each modality does to the users' scores, and which users make it up.

P  training pairs    U, N  users and items    n  items of this rank    M  items whose contributors are listed

What is of pairs and users is the same on every rank; every function is collective.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from uatmc_dist.adversary.defenses import adversary
from uatmc_dist.config import AdversarialConfig
from uatmc_dist.evaluation.mismatch.gradients import Gradients
from uatmc_dist.evaluation.mismatch.summary import BINS, histogram, summary
from uatmc_dist.evaluation.mismatch.training_pairs import Measured, TrainingPairs
from uatmc_dist.parallel.item_parallel import sum_over_ranks

NUM_TOP = 10
_LISTED, _LISTED_WITH_GRAPH = 512, 32
_DIRECTIONS_AT_ONCE = 8
_USERS_AT_ONCE = 1 << 14


def reach(model: Measured) -> dict[str, float | None] | None:
    """Linear fusion: |W_v^T h_u| / |W_t^T h_u| over users, how much more a unit of the photo can do to a user's score
    than a unit of the text. None elsewhere: it differs from item to item then."""
    if not model.is_linear:
        return None
    w_v, w_t, _ = model.dense.fusion()
    lengths = []
    for users_B in torch.arange(model.num_users).split(_USERS_AT_ONCE):
        content_BC = model.user_rows(users_B)[:, -w_v.shape[0] :]
        lengths.append(torch.stack([(content_BC @ weight).norm(dim=1) for weight in (w_v, w_t)]).cpu())
    visual_U, text_U = torch.cat(lengths, dim=1)
    kept_U = (visual_U > 0) & (text_U > 0)
    return summary(visual_U[kept_U] / text_U[kept_U])


@torch.no_grad()
def shifts(pairs: TrainingPairs, config: AdversarialConfig) -> dict[str, Any]:
    """Of the separate step (uat): `user_cosine`, by item, the cosine over pairs of the shifts of its score by its photo
    and by its text, weighted by |dL/ds|; `shift_ratio`, by pair, the root mean square over items of the former
    shift over that of the latter."""
    one_step = config.model_copy(update={"adversary": "uat", "steps": 1})
    separate = adversary(one_step, pairs.model.block.num_items, seed=0)
    assert separate is not None
    with torch.enable_grad():
        delta_v, delta_t = separate(pairs.problem, pairs.clean_loss, 0)
    problem, view = pairs.problem, pairs.view
    moved = view.at(view.v_nd + delta_v, view.t_nd), view.at(view.v_nd, view.t_nd + delta_t)
    squares = [torch.zeros(len(pairs.users_P), dtype=torch.float64, device=view.v_nd.device) for _ in moved]
    cosines = []
    for tile, weights_Pn in problem.objective.score_weights(*view.clean, problem.batch, problem.rows):
        clean_Pn = view.clean.users_BK @ view.clean.items_nK[tile].T
        visual_Pn, text_Pn = (users_PK @ items_NK[tile].T - clean_Pn for users_PK, items_NK in moved)
        for total_P, shift_Pn in zip(squares, (visual_Pn, text_Pn), strict=True):
            total_P += shift_Pn.square().sum(1)
        root_Pn = weights_Pn.sqrt()
        cosines.append(F.cosine_similarity(root_Pn * visual_Pn, root_Pn * text_Pn, dim=0, eps=1e-30))
    cosine_n = torch.cat(cosines) if cosines else view.v_nd.new_zeros(0)
    cosine_N, (visual_P, text_P) = pairs.everywhere(cosine_n), map(sum_over_ranks, squares)
    kept_P = (visual_P > 0) & (text_P > 0)
    return {
        "user_cosine": {**summary(cosine_N), "histogram": histogram(cosine_N, BINS)},
        "shift_ratio": summary((visual_P[kept_P] / text_P[kept_P]).sqrt().cpu()),
    }


def contributors(pairs: TrainingPairs, gradients: Gradients) -> dict[str, Any]:
    """Which users make up the gradients of some items: overlap of the ten largest contributors to each modality.

    A user contributes the gradient of its own pairs' loss; its part is the length along the whole gradient.
    """
    num_items = pairs.model.block.num_items
    most = _LISTED if pairs.model.is_linear else _LISTED_WITH_GRAPH
    chosen = np.random.default_rng(1).choice(num_items, size=min(most, num_items), replace=False)
    listed_M = torch.from_numpy(np.sort(chosen))
    parts_of = _parts_under_linear_fusion if pairs.model.is_linear else _parts_through_the_graph
    tops, shares = [], []
    for index, gradient_nd in enumerate(gradients):
        top, share = [], []
        for parts_PM in parts_of(pairs, index, listed_M, gradient_nd):
            users_tM, largest_M, total_M = _largest(sum_over_ranks(parts_PM).cpu(), pairs.users_P)
            top.append(users_tM)
            share.append(largest_M / total_M.clamp(min=1e-30))
        tops.append(torch.cat(top, dim=1))
        shares.append(torch.cat(share))
    overlap_M = (tops[0][:, None, :] == tops[1][None, :, :]).any(1).double().mean(0)
    return {
        "items": len(listed_M),
        "overlap": {**summary(overlap_M), "histogram": histogram(overlap_M, np.linspace(-0.05, 1.05, 12))},
        "visual_share_of_top": float(shares[0].median()),
        "text_share_of_top": float(shares[1].median()),
    }


def _largest(parts_PM: torch.Tensor, users_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the ten users with the largest sums of their pairs [10, M], the sum over them [M], over all [M])."""
    distinct, group_P = torch.unique_consecutive(users_P, return_inverse=True)
    of_user = torch.zeros(len(distinct), parts_PM.shape[1]).index_add_(0, group_P, parts_PM)
    top = of_user.topk(min(NUM_TOP, len(distinct)), dim=0)
    return distinct[top.indices], top.values.sum(0), of_user.sum(0)


def _weights(pairs: TrainingPairs) -> Iterator[tuple[slice, torch.Tensor]]:
    """dL/ds of each pair and item of this rank, [P, tile]; negative at a pair's positive."""
    problem, view = pairs.problem, pairs.view
    places = problem.rows.places(problem.batch.positives_B, view.v_nd.device)
    for tile, weights_Pn in problem.objective.score_weights(*view.clean, problem.batch, problem.rows):
        inside = (places.index_M >= tile.start) & (places.index_M < tile.stop)
        weights_Pn[places.mine_M[inside], places.index_M[inside] - tile.start] *= -1
        yield tile, weights_Pn


# The parts that follow are this rank's: [P, M] of the listed items, some at a time.


@torch.no_grad()
def _parts_under_linear_fusion(
    pairs: TrainingPairs, modality: int, listed_M: torch.Tensor, gradient_nd: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Pair p adds dL/ds_pj W^T h_p to item j's gradient."""
    weight = pairs.model.dense.fusion()[modality]
    content_PC = pairs.view.clean.users_BK[:, -weight.shape[0] :]
    own_M = (listed_M - pairs.model.block.lo).to(gradient_nd.device)
    parts_PM = content_PC.new_zeros(len(content_PC), len(own_M))
    for tile, weights_Pn in _weights(pairs):
        inside_m = ((own_M >= tile.start) & (own_M < tile.stop)).nonzero().squeeze(1)
        own_m = own_M[inside_m]
        along_mC = F.normalize(gradient_nd[own_m], dim=1) @ weight.T
        parts_PM[:, inside_m] = weights_Pn[:, own_m - tile.start] * (content_PC @ along_mC.T)
    yield parts_PM


def _parts_through_the_graph(
    pairs: TrainingPairs, modality: int, listed_M: torch.Tensor, gradient_nd: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The derivative of each pair's loss where the item's row moves along its gradient; of all pairs at once."""
    view = pairs.view
    rows_nd = view.v_nd if modality == 0 else view.t_nd
    embeddings = view.clean.users_BK, view.clean.items_nK
    seeds = [torch.zeros_like(rows).requires_grad_() for rows in embeddings]
    (pulled_nd,) = torch.autograd.grad(embeddings, rows_nd, seeds, create_graph=True)
    slopes_PK, _ = torch.autograd.grad(pairs.clean_loss, embeddings, retain_graph=True)
    for own_m in (listed_M - pairs.model.block.lo).split(_DIRECTIONS_AT_ONCE):
        by_user, by_item = [], []
        for item in own_m.tolist():
            direction_nd = torch.zeros_like(rows_nd)
            if 0 <= item < len(rows_nd):
                direction_nd[item] = F.normalize(gradient_nd[item], dim=0)
            users_PK, items_nK = torch.autograd.grad(pulled_nd, seeds, direction_nd, retain_graph=True)
            by_user.append((slopes_PK * users_PK).sum(1))
            by_item.append(items_nK)
        with torch.no_grad():
            moved_nX = torch.cat(by_item, dim=1)
            summed_PX = moved_nX.new_zeros(len(slopes_PK), moved_nX.shape[1])
            for tile, weights_Pn in _weights(pairs):
                summed_PX += weights_Pn @ moved_nX[tile]
            summed_PMK = summed_PX.unflatten(1, (len(by_item), -1))
            through_items_PM = (summed_PMK * view.clean.users_BK[:, None, :]).sum(2)
            yield torch.stack(by_user, dim=1) + through_items_PM
