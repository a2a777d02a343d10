"""The full-catalog loss of a trained model over training pairs, as the trainer's adversaries see one batch.

P  training pairs    N  items    K  width of an embedding    d  width of a projected row
"""

from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.defenses import Problem
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.backbone import LinearContent, Scored
from uatmc_dist.models.objectives import FullCatalog
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock

_MOST_PAIRS = 8192


class TrainingPairs:
    """All training pairs, or 8,192 of them, as one batch; a user's pairs lie next to each other."""

    def __init__(self, model: TrainedModel, catalog: Catalog) -> None:
        self.model = model
        users, items = (torch.from_numpy(ids) for ids in catalog.split("train"))
        if len(users) > _MOST_PAIRS:
            chosen = torch.from_numpy(np.random.default_rng(0).choice(len(users), _MOST_PAIRS, replace=False))
            users, items = users[chosen], items[chosen]
        order = users.argsort(stable=True)
        self.users_P, self.positives_P = users[order], items[order]
        batch = Batch(self.users_P, self.positives_P, self.positives_P)
        objective = FullCatalog(
            ItemBlock(catalog.num_items, 0, 1), KnownPositives.of_training(catalog), exclude_known_positives=False
        )
        self.view = WholeCatalogView(model, self.users_P)
        self.problem = Problem(objective, batch, objective.rows(batch), self.view)
        self.clean_loss = self.problem.loss(self.view.clean)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """dL/dv and dL/dt, [N, d] each."""
        leaves = self.view.v_nd, self.view.t_nd
        visual_Nd, text_Nd = torch.autograd.grad(self.clean_loss, leaves, retain_graph=True)
        return visual_Nd, text_Nd

    @torch.no_grad()
    def loss(self, delta_v: torch.Tensor | float = 0.0, delta_t: torch.Tensor | float = 0.0) -> float:
        return float(self.problem.loss(self.view.at(self.view.v_nd + delta_v, self.view.t_nd + delta_t)))


class WholeCatalogView:
    """Of a trained model (models/backbone.py, View): all items may move."""

    def __init__(self, model: Any, users_P: torch.Tensor) -> None:
        self._model, self._users_P = model, users_P
        self.v_nd, self.t_nd = (rows.detach().clone().requires_grad_() for rows in (model.v_Nd, model.t_Nd))
        self.content_rows = ActiveRows(torch.arange(len(self.v_nd)), 0)
        self.clean, self.linear = self.at(self.v_nd, self.t_nd), None
        if model.is_linear:
            identity_Nd, content_NC = model.identity_Nd, model.dense.fuse(self.v_nd, self.t_nd)
            self.clean = Scored(self.clean.users_BK, torch.cat([identity_Nd, content_NC], dim=1))
            self.linear = LinearContent(identity_Nd, content_NC, *model.dense.fusion())

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        users_UK, items_NK = self._model.embed(v_nd, t_nd)
        return Scored(users_UK.index_select(0, self._users_P), items_NK)

    def embedding_size(self, norm: str, item_lists: list[torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError("nothing is trained here")
