"""The full-catalog loss of a trained model over training pairs, as the trainer's adversaries see one batch.

P  training pairs    n  items of this rank    N  of all ranks    K  width of an embedding    d  width of a projected row
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.defenses import Problem
from uatmc_dist.config import Config
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.backbone import LinearContent, Scored, View
from uatmc_dist.models.objectives import FullCatalog
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock, gather_rows, sum_over_ranks

_MOST_PAIRS = 8192


@dataclass(frozen=True)
class Measured:
    """A model as it is measured: whole in one process, or in the row blocks of several ranks, which then measure
    together."""

    block: ItemBlock
    num_users: int
    dense: Any
    """None without content."""
    is_linear: bool
    user_rows: Callable[[torch.Tensor], torch.Tensor]
    """Global user ids [B] -> embeddings [B, K] on every rank. Collective."""
    view: Callable[[Batch, ActiveRows], View]
    """Of a batch and all items of the block; v and t are leaves. Collective."""

    @classmethod
    def whole(cls, model: Any) -> "Measured":
        users_UK, block = model.users_UK, ItemBlock(len(model.items()), 0, 1)
        if model.dense is None or not model.is_linear:
            user_rows, view = users_UK.__getitem__, lambda *batch: _GraphView(model, *batch)
            return cls(block, len(users_UK), model.dense, model.is_linear, user_rows, view)
        rows = model.identity_Nd, model.v_Nd, model.t_Nd
        return cls.of_linear_fusion(block, len(users_UK), model.dense, users_UK.__getitem__, rows)

    @classmethod
    def whole_start(cls, config: Config, catalog: Catalog) -> "Measured":
        """The model that a run started from."""
        if config.start_from is None:
            return cls.whole(TrainedModel.initial(config, catalog))
        return cls.whole(TrainedModel.load(config.start_from, catalog))

    @classmethod
    def of_linear_fusion(
        cls,
        block: ItemBlock,
        num_users: int,
        dense: Any,
        user_rows: Callable[[torch.Tensor], torch.Tensor],
        item_rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> "Measured":
        """`item_rows`: identity, v and t [n, d]. Users are those that are ranked: no pair is left out of a history, as
        it is in training."""
        return cls(
            block, num_users, dense, True, user_rows, lambda *batch: _LinearView(dense, user_rows, item_rows, *batch)
        )


class TrainingPairs:
    """All training pairs, or 8,192 of them, as one batch; a user's pairs lie next to each other. Collective."""

    def __init__(self, model: Measured, catalog: Catalog) -> None:
        self.model = model
        users, items = (torch.from_numpy(ids) for ids in catalog.split("train"))
        if len(users) > _MOST_PAIRS:
            chosen = torch.from_numpy(np.random.default_rng(0).choice(len(users), _MOST_PAIRS, replace=False))
            users, items = users[chosen], items[chosen]
        order = users.argsort(stable=True)
        self.users_P, positives_P = users[order], items[order]
        batch = Batch(self.users_P, positives_P)
        known = KnownPositives.of_training(catalog)
        objective = FullCatalog(model.block, known, exclude_known_positives=False)
        rows = objective.rows(batch)
        self.view = model.view(batch, rows)
        self.problem = Problem(objective, batch, rows, self.view)
        self.clean_loss = self.problem.loss(self.view.clean)
        """This rank's partial."""

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """dL/dv and dL/dt, [n, d] each. Collective."""
        leaves = self.view.v_nd, self.view.t_nd
        visual_nd, text_nd = torch.autograd.grad(self.clean_loss, leaves, retain_graph=True)
        return visual_nd, text_nd

    @torch.no_grad()
    def loss(self, delta_v: torch.Tensor | float = 0.0, delta_t: torch.Tensor | float = 0.0) -> float:
        """Collective."""
        moved = self.view.at(self.view.v_nd + delta_v, self.view.t_nd + delta_t)
        return float(sum_over_ranks(self.problem.loss(moved)))

    def everywhere(self, values_n: torch.Tensor) -> torch.Tensor:
        """A number for each item of this rank -> for each item, [N] on the CPU of every rank. Collective."""
        return gather_rows(values_n.detach()[:, None], self.model.block.sizes)[:, 0].cpu()


class _WholeView:
    """A batch and all items of a block (models/backbone.py, View); projected rows are leaves."""

    clean: Scored
    linear: LinearContent | None = None

    def __init__(self, rows: ActiveRows, v_nd: torch.Tensor, t_nd: torch.Tensor) -> None:
        self.content_rows = rows
        self.v_nd, self.t_nd = (part.detach().clone().requires_grad_() for part in (v_nd, t_nd))

    def embedding_size(self, norm: str, item_lists: list[torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError("nothing is trained here")


class _LinearView(_WholeView):
    """Under linear fusion, of a block or of all items."""

    def __init__(
        self,
        dense: Any,
        user_rows: Callable[[torch.Tensor], torch.Tensor],
        item_rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        batch: Batch,
        rows: ActiveRows,
    ) -> None:
        identity_nd, *projected = item_rows
        super().__init__(rows, *projected)
        self._users_PK, self._dense, self._identity_nd = user_rows(batch.users_B), dense, identity_nd
        content_nC = dense.fuse(self.v_nd, self.t_nd)
        self.clean = Scored(self._users_PK, torch.cat([identity_nd, content_nC], dim=1))
        self.linear = LinearContent(identity_nd, content_nC, *dense.fusion())

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        return Scored(self._users_PK, torch.cat([self._identity_nd, self._dense.fuse(v_nd, t_nd)], dim=1))


class _GraphView(_WholeView):
    """Through the whole graph of a trained model."""

    def __init__(self, model: Any, batch: Batch, rows: ActiveRows) -> None:
        super().__init__(rows, model.v_Nd, model.t_Nd)
        self._model, self._users_P = model, batch.users_B
        self.clean = self.at(self.v_nd, self.t_nd)

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        users_UK, items_NK = self._model.embed(v_nd, t_nd)
        return Scored(users_UK.index_select(0, self._users_P), items_NK)
