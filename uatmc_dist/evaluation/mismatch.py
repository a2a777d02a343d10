"""The premise of coordination, measured: how far apart are the gradients of the two modalities?

For every item, of the full-catalog loss over training pairs: the cosine of the visual and the textual gradient, which
users make up each of them, and what coordination costs or gains the one-step adversary (docs/algorithm.md, section 4).

    P  training pairs    N  items    M  items whose contributors are listed    d  width of a projected row
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.coordination import LinearView
from uatmc_dist.config import AdversarialConfig, Config
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.models.objectives import FullCatalog
from uatmc_dist.models.projectors import fused_items
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_kernels import bpr_all_items, coordinate, perturb

_PAIRS, _PAIRS_AT_ONCE = 1 << 16, 2048
_LISTED_ITEMS, _TOP = 512, 10
_EPSILONS = (0.05, 0.1, 0.2, 0.5)
_BINS = np.linspace(-1, 1, 41)


def measure_mismatch(
    config: Config,
    catalog: Catalog,
    model: LinearModel,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """What mismatch.json holds: the model, and the one that it started from.

    Before is the run of `start_from`, or the seeded initial weights. Raises UserError without two modalities.
    """
    if model.dense is None:
        raise UserError("this model has no content (model.content=false), so it has no modalities to compare")
    if not model.is_linear:
        raise UserError(
            "gradients are compared under linear fusion; this model's scores are not linear in its features"
        )
    if len(model.dense.modalities) < 2:
        raise UserError(f"this model has {model.dense.modalities[0]} features alone; there is nothing to compare")
    if config.start_from is not None:
        start, name = LinearModel.load(config.start_from, catalog), str(config.start_from)
    else:
        start, name = LinearModel.initial(config, catalog), "initial weights"
    stages = {}
    for done, (stage, measured) in enumerate((("before", start), ("after", model))):
        stages[stage] = _Gradients(measured, catalog, config.adversarial).report()
        progress(done + 1, 2)
    adversarial = config.adversarial
    return {
        "before_is": name,
        "adv_align_weight": adversarial.adv_align_weight,
        "norm": adversarial.norm,
        "top_contributors": _TOP,
        **stages,
    }


class _Gradients:
    """Gradients of one model's full-catalog loss, of all its training pairs or 65,536 of them."""

    def __init__(self, model: LinearModel, catalog: Catalog, config: AdversarialConfig) -> None:
        assert model.dense is not None
        self._model, self._config = model, config
        users, items = (torch.from_numpy(ids) for ids in catalog.split("train"))
        if len(users) > _PAIRS:
            chosen = torch.from_numpy(np.random.default_rng(0).choice(len(users), _PAIRS, replace=False))
            users, items = users[chosen], items[chosen]
        order = users.argsort(stable=True)  # a user's pairs next to each other
        self._users_P, self._positives_P = users[order], items[order]
        known = KnownPositives.of_training(catalog)
        self._objective = FullCatalog(ItemBlock(catalog.num_items, 0, 1), known, exclude_known_positives=False)
        self._items_NK = model.items()
        self.w_v, self.w_t, self._bias = model.dense.fusion()

    def report(self) -> dict[str, Any]:
        gradient_Nd = self._mean(lambda view: view.content_gradient(self._items_NK))
        _, omega_Nd = coordinate(gradient_Nd, self.w_v, self.w_t)
        hvp_Nd = self._mean(lambda view: view.content_hvp(self._items_NK, omega_Nd))
        moved_N = gradient_Nd.norm(dim=1) > 0
        ratio_N = hvp_Nd.norm(dim=1)[moved_N] / gradient_Nd.norm(dim=1)[moved_N]
        cosine_N = torch.nn.functional.cosine_similarity(
            gradient_Nd[moved_N] @ self.w_v, gradient_Nd[moved_N] @ self.w_t, dim=1, eps=0.0
        )
        return {
            "pairs": len(self._users_P),
            "items": len(gradient_Nd),
            "items_without_gradient": int((~moved_N).sum()),
            "cosine": {**_summary(cosine_N), "histogram": _histogram(cosine_N, _BINS)},
            "contributors": self._contributors(gradient_Nd),
            "hvp_over_gradient": _summary(ratio_N),
            "direction": self._turned(gradient_Nd, hvp_Nd),
            "strength": self._strength(gradient_Nd, hvp_Nd),
        }

    def _views(self) -> Iterator[tuple[float, LinearView]]:
        """(share of the pairs, what the adversary sees of them), batch after batch; no user is in two of them."""
        model = self._model
        assert model.dense is not None
        _, counts = torch.unique_consecutive(self._users_P, return_counts=True)
        ends = counts.cumsum(0)
        _, last = torch.unique_consecutive((ends - 1) // _PAIRS_AT_ONCE, return_counts=True)
        cuts = [0, *ends[last.cumsum(0) - 1].tolist()]
        for start, stop in pairwise(cuts):
            users_B, positives_B = self._users_P[start:stop], self._positives_P[start:stop]
            batch = Batch(users_B, positives_B, positives_B)
            rows = self._objective.rows(batch)
            tensors = model.users_UK[users_B], model.identity_Nd, model.v_Nd, model.t_Nd, self.w_v, self.w_t
            yield (
                len(users_B) / len(self._users_P),
                LinearView(self._objective, batch, rows, *tensors, self._bias),
            )

    def _mean(self, of_batch: Callable[[LinearView], torch.Tensor]) -> torch.Tensor:
        """Mean over the pairs of what `of_batch` says of one batch, [N, d]."""
        mean_Nd = torch.zeros(len(self._items_NK), len(self._bias))
        for share, view in self._views():
            mean_Nd += share * of_batch(view)
        return mean_Nd

    def _loss(self, items_NK: torch.Tensor) -> float:
        losses = (
            share * self._objective.loss(view.users_BK, items_NK, view.batch, view.rows)
            for share, view in self._views()
        )
        return float(sum(losses))

    def _strength(self, gradient_Nd: torch.Tensor, hvp_Nd: torch.Tensor) -> list[dict[str, float | None]]:
        """How much one step raises the loss when all items are perturbed: each modality for itself, and coordinated."""
        clean = self._loss(self._items_NK)
        coordinated_Nd = gradient_Nd + self._config.adv_align_weight * hvp_Nd
        rows: list[dict[str, float | None]] = []
        for epsilon in _EPSILONS:
            separate, coordinated = (
                self._loss(self._moved(direction, epsilon)) - clean for direction in (gradient_Nd, coordinated_Nd)
            )
            rows.append(
                {
                    "epsilon": epsilon,
                    "clean_loss": clean,
                    "rise_separate": separate,
                    "rise_coordinated": coordinated,
                    "coordinated_over_separate": coordinated / separate if separate else None,
                }
            )
        return rows

    def _moved(self, direction_Nd: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Item embeddings one step along the direction."""
        model = self._model
        assert model.dense is not None
        fusion = self.w_v, self.w_t
        deltas = perturb(direction_Nd, *fusion, model.v_Nd, model.t_Nd, epsilon, norm=self._config.norm)
        rows = model.v_Nd + deltas[0], model.t_Nd + deltas[1]
        return fused_items(model.identity_Nd, *rows, *fusion, self._bias)

    def _turned(self, gradient_Nd: torch.Tensor, hvp_Nd: torch.Tensor) -> dict[str, float]:
        """How far coordination turns the direction of the step: share of the items' modalities."""
        coordinated_Nd = gradient_Nd + self._config.adv_align_weight * hvp_Nd
        cosine = torch.cat(
            [
                torch.nn.functional.cosine_similarity(gradient_Nd @ weight, coordinated_Nd @ weight, dim=1, eps=0.0)
                for weight in (self.w_v, self.w_t)
            ]
        )
        degrees = torch.rad2deg(torch.acos(cosine.nan_to_num(1.0).clamp(-1, 1)))
        return {
            f"share_turned_by_more_than_{angle}_degrees": float((degrees > angle).double().mean())
            for angle in (1, 30, 90)
        }

    def _contributors(self, gradient_Nd: torch.Tensor) -> dict[str, Any]:
        """Which users make up the gradients of some items: overlap of the ten largest contributors to each modality.

        User u contributes A_uj h_u to g_j; its part in a modality's gradient is the length along it.
        """
        num_items = len(gradient_Nd)
        chosen = np.random.default_rng(1).choice(num_items, size=min(_LISTED_ITEMS, num_items), replace=False)
        listed_M = torch.from_numpy(np.sort(chosen))
        along = [
            weight @ torch.nn.functional.normalize(gradient_Nd[listed_M] @ weight, dim=1).T
            for weight in (self.w_v, self.w_t)
        ]
        best = [(torch.zeros(0, len(listed_M)), torch.zeros(0, len(listed_M), dtype=torch.int64))] * len(along)
        totals = [torch.zeros(len(listed_M))] * len(along)
        for _, view in self._views():
            weights_BM = self._weights(view, listed_M)
            content_Bd = view.users_BK[:, view.identity_nd.shape[1] :]
            for index, direction_dM in enumerate(along):
                parts_BM = weights_BM * (content_Bd @ direction_dM)
                totals[index] = totals[index] + parts_BM.sum(0)
                best[index] = _largest(parts_BM, view.batch.users_B, *best[index])
        (_, visual_top), (_, text_top) = best
        overlap_M = (visual_top[:, None, :] == text_top[None, :, :]).any(1).double().mean(0)
        shares = {
            f"{name}_share_of_top": float((parts.sum(0) / total.clamp(min=1e-30)).median())
            for name, (parts, _), total in zip(("visual", "text"), best, totals, strict=True)
        }
        return {
            "items": len(listed_M),
            "overlap": {**_summary(overlap_M), "histogram": _histogram(overlap_M, np.linspace(-0.05, 1.05, 12))},
            **shares,
        }

    def _weights(self, view: LinearView, listed_M: torch.Tensor) -> torch.Tensor:
        """dL/ds of each pair and listed item, [B, M]: A_bj, and -sum_j A_bj where the item is the pair's positive."""
        positives_B = view.batch.positives_B
        positive_B = (view.users_BK * self._items_NK[positives_B]).sum(1).requires_grad_()
        losses_B = bpr_all_items(view.users_BK, self._items_NK, positive_B, positives_B)
        (minus_sums_B,) = torch.autograd.grad(losses_B.sum(), positive_B)
        weights_BM = torch.sigmoid(view.users_BK @ self._items_NK[listed_M].T - positive_B.detach()[:, None])
        return torch.where(positives_B[:, None] == listed_M, minus_sums_B[:, None], weights_BM)


def _largest(
    parts_BM: torch.Tensor, users_B: torch.Tensor, best_parts: torch.Tensor, best_users: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges a batch, in which a user's pairs lie next to each other, into the ten largest contributors so far."""
    distinct, group_B = torch.unique_consecutive(users_B, return_inverse=True)
    of_user = torch.zeros(len(distinct), parts_BM.shape[1]).index_add_(0, group_B, parts_BM)
    parts = torch.cat([best_parts, of_user])
    users = torch.cat([best_users, distinct[:, None].expand_as(of_user)])
    top = parts.topk(min(_TOP, len(parts)), dim=0)
    return top.values, users.gather(0, top.indices)


def _summary(values: torch.Tensor) -> dict[str, float | None]:
    values = values.double()
    if not len(values):
        return dict.fromkeys(("mean", "10%", "median", "90%"))
    low, median, high = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return {"mean": float(values.mean()), "10%": low, "median": median, "90%": high}


def _histogram(values: torch.Tensor, edges: np.ndarray) -> dict[str, list[float]]:
    counts, _ = np.histogram(values.double().clamp(edges[0], edges[-1]).numpy(), edges)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts.tolist()}
