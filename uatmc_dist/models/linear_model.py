"""A trained model under linear fusion, whole on one CPU."""

from functools import partial
from pathlib import Path

import torch

from uatmc_dist.config import Config
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.histories import pooled_users
from uatmc_dist.models.backbone import Progress, TableShape
from uatmc_dist.models.projected import projected_items
from uatmc_dist.models.projectors import ContentModel, project_items
from uatmc_dist.models.trained import TrainedModel

USER_TABLES = {"row": ["user"], "history": ["history"], "both": ["user", "history"]}


def linear_tables(num_halves: int, config: Config, num_users: int, num_items: int) -> dict[str, TableShape]:
    """`num_halves`: content halves of a user."""
    model, std = config.model, config.tables.init_std
    width = (1 + num_halves) * model.embedding_dim if model.content else model.embedding_dim
    shapes = {
        "user": TableShape("user", num_users, width, std),
        "history": TableShape("item", num_items, width, std),
        "item": TableShape("item", num_items, model.embedding_dim, std),
    }
    return {name: shapes[name] for name in (*USER_TABLES[model.user], "item")}


class LinearModel(TrainedModel):
    """users_UK, identity_Nd float32; with content also v_Nd, t_Nd (projected rows) and `dense`; where users are their
    histories, history_NK."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        tables: dict[str, torch.Tensor],
        dense: ContentModel | None,
        path: Path | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.path, self.config, self.dense = path, config, dense
        self.identity_Nd, self.history_NK = tables["item"], tables.get("history")
        users_UK = tables.get("user")
        if self.history_NK is not None:
            known = KnownPositives.of_training(catalog)
            users_UK = pooled_users(known, self.history_NK, catalog.num_users, users_UK)
        assert users_UK is not None  # of the tables that a user is made of there is one at least
        self.users_UK = users_UK
        if dense is not None:
            dense.requires_grad_(False)
            project = project_items if path is None else partial(projected_items, progress=progress)
            self.v_Nd, self.t_Nd = project(dense, catalog, 0, catalog.num_items, torch.device("cpu"))

    def items(self) -> torch.Tensor:
        if self.dense is None:
            return self.identity_Nd
        return self.embed(self.v_Nd, self.t_Nd)[1]

    def embed(self, v_Nd: torch.Tensor, t_Nd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Users do not depend on what is perturbed: the content of their histories is what they had bought."""
        assert self.dense is not None
        return self.users_UK, torch.cat([self.identity_Nd, self.dense.fuse(v_Nd, t_Nd)], dim=1)
