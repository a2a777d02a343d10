"""Backbones whose content is fused linearly, in training: sharded tables, projectors and fusion.

n  rows of this rank    d  embedding_dim    C  columns of content    K  d + C with content, d without
"""

import torch
import torch.distributed as dist

from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.backbone import LinearContent, Progress, Ranking, Scored, backbone
from uatmc_dist.models.own_content import OwnContent
from uatmc_dist.models.projectors import ContentModel, project_items, start_from_content
from uatmc_dist.models.regularisers import embedding_size
from uatmc_dist.models.tables import ShardedBags, ShardedTable
from uatmc_dist.models.users import UserVectors
from uatmc_dist.parallel.engine import DenseEngine
from uatmc_dist.parallel.item_parallel import ActiveRows
from uatmc_dist.parallel.process_group import World


class LinearFusion:
    """The model of one phase (models/backbone.py says what the arguments are)."""

    def __init__(
        self,
        catalog: Catalog,
        known: KnownPositives,
        config: Config,
        world: World,
        phase: PhaseName,
        dense_weights: dict[str, torch.Tensor] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.has_content = config.model.content
        kind, dim = backbone(config.model), config.model.embedding_dim
        width = next(iter(kind.tables(config, catalog.num_users, catalog.num_items).values())).width
        self.users = UserVectors(config, catalog.num_users, width, known, world.device)
        self.items = ShardedTable("item", catalog.num_items, dim, config.tables, world.device)
        for table in self.tables:
            table.initialise(config.tables.init_std, config.seed)
        self._dense: ContentModel | None = None
        self._content: OwnContent | None = None
        module: torch.nn.Module = torch.nn.Module()
        if self.has_content:
            self._dense = module = kind.dense_module(config, catalog)  # type: ignore[assignment]
            if dense_weights is None:
                start_from_content(self.dense, config, catalog)
            else:
                self.dense.load_state_dict(dense_weights)
            self.dense.to(world.device)
            block = self.items.block
            if dense_weights is None and config.model.initial == "content":
                # Components may differ in their last bits, or in signs, between processors; the rows below need the
                # first rank's, which the engine would hand out too late.
                for parameter in self.dense.parameters():
                    dist.broadcast(parameter.data, 0)
                with torch.no_grad():
                    rows = project_items(self.dense, catalog, block.lo, block.hi, world.device)
                    self.users.start_from_content(self.dense.fuse(*rows))
            self._content = OwnContent(self.dense, catalog, block, config, phase, world.device, progress)
        self.engine = DenseEngine(module, config.training, config.engine, world)

    @property
    def tables(self) -> list[ShardedTable | ShardedBags]:
        return [*self.users.tables, self.items]

    @property
    def dense(self) -> ContentModel:
        assert self._dense is not None
        return self._dense

    @property
    def content(self) -> OwnContent:
        assert self._content is not None
        return self._content

    def dense_weights(self) -> dict[str, torch.Tensor]:
        frozen = self.content.frozen if self.has_content else {}
        return {**frozen, **self.engine.weights()}

    def view(self, batch: Batch, rows: ActiveRows) -> "LinearFusionView":
        return LinearFusionView(self, batch, rows)

    @torch.no_grad()
    def ranking(self) -> Ranking:
        items_nK = self.items.local_weight
        if self.has_content:
            items_nK = torch.cat([items_nK, self.dense.fuse(*self.content.of_block())], dim=1)
        return Ranking(self.users.of_users, items_nK)


class LinearFusionView:
    """One batch (models/backbone.py, View). Items move with their content, users do not; what becomes of raw rows is
    not linear."""

    linear: LinearContent | None = None
    v_nd: torch.Tensor
    t_nd: torch.Tensor

    def __init__(self, model: LinearFusion, batch: Batch, rows: ActiveRows) -> None:
        self._model, self.content_rows = model, rows
        users = model.users.of_pairs(batch)
        self._identity_nd = model.items.own_rows(rows.ids_n)
        items_nK = self._identity_nd
        if model.has_content:
            items_nK = torch.cat([items_nK, self._unperturbed()], dim=1)
        self.clean = Scored(users.wait(), items_nK)

    def _unperturbed(self) -> torch.Tensor:
        """Content [n, C]."""
        self.v_nd, self.t_nd = self._model.content.movable(self.content_rows.ids_n)
        content_nC = self._fused(self.v_nd, self.t_nd)
        if not self._model.content.is_moved_at_encoder:
            self.linear = LinearContent(self._identity_nd, content_nC, *self._model.dense.fusion())
        return content_nC

    def _fused(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> torch.Tensor:
        return self._model.dense.fuse(*self._model.content.shown(v_nd, t_nd))

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        return Scored(self.clean.users_BK, torch.cat([self._identity_nd, self._fused(v_nd, t_nd)], dim=1))

    def embedding_size(self, norm: str, item_lists: list[torch.Tensor]) -> torch.Tensor:
        return embedding_size(norm, self.clean.users_BK, self._identity_nd, item_lists, self.content_rows)
