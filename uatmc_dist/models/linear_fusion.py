"""Backbones whose content is fused linearly, in training: sharded tables, projectors and fusion.

n  rows of this rank    d  embedding_dim    C  columns of content    K  d + C with content, d without
"""

import torch
import torch.distributed as dist

from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.backbone import LinearContent, Progress, Ranking, Scored, backbone
from uatmc_dist.models.projected import projected_items
from uatmc_dist.models.projectors import ContentModel, OwnFeatures, movable, project_items, start_from_content
from uatmc_dist.models.regularisers import embedding_size
from uatmc_dist.models.tables import ShardedBags, ShardedTable
from uatmc_dist.models.users import UserVectors
from uatmc_dist.parallel.engine import DenseEngine
from uatmc_dist.parallel.item_parallel import ActiveRows
from uatmc_dist.parallel.process_group import World
from uatmc_dist.parallel.upload import upload

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        self._catalog, self._device = catalog, world.device
        self.has_content = config.model.content
        kind, dim = backbone(config.model), config.model.embedding_dim
        width = next(iter(kind.tables(config, catalog.num_users, catalog.num_items).values())).width
        self.users = UserVectors(config, catalog.num_users, width, known, world.device)
        self.items = ShardedTable("item", catalog.num_items, dim, config.tables, world.device)
        for table in self.tables:
            table.initialise(config.tables.init_std, config.seed)
        self._projected: tuple[torch.Tensor, torch.Tensor] | None = None
        self._frozen: dict[str, torch.Tensor] = {}
        self._dense: ContentModel | None = None
        self._at_encoder = False
        module: torch.nn.Module = torch.nn.Module()
        if self.has_content:
            self._features = OwnFeatures(catalog, self.items.block, world.device)
            self._dense = module = kind.dense_module(config, catalog)  # type: ignore[assignment]
            if dense_weights is None:
                start_from_content(self.dense, config, catalog)
            else:
                self.dense.load_state_dict(dense_weights)
            self.dense.to(world.device)
            if dense_weights is None and config.model.initial == "content":
                # Components may differ in their last bits, or in signs, between processors; the rows below need the
                # first rank's, which the engine would hand out too late.
                for parameter in self.dense.parameters():
                    dist.broadcast(parameter.data, 0)
                self.users.start_from_content(self._local_content())
            self._at_encoder = phase == "adversarial" and config.adversarial.at == "encoder"
            if phase == "adversarial" and not self._at_encoder:
                self.dense.freeze_projectors()
                block = self.items.block
                dtype = NUMBER_FORMATS[config.adversarial.projected_precision]
                self._projected = projected_items(
                    self.dense, catalog, block.lo, block.hi, world.device, dtype, progress
                )
                self._frozen = {
                    name: p.detach().cpu().clone() for name, p in self.dense.named_parameters() if not p.requires_grad
                }
        self.engine = DenseEngine(module, config.training, config.engine, world)

    @property
    def tables(self) -> list[ShardedTable | ShardedBags]:
        return [*self.users.tables, self.items]

    @property
    def dense(self) -> ContentModel:
        assert self._dense is not None
        return self._dense

    def dense_weights(self) -> dict[str, torch.Tensor]:
        return {**self._frozen, **self.engine.weights()}

    def view(self, batch: Batch, rows: ActiveRows) -> "LinearFusionView":
        return (EncoderView if self._at_encoder else LinearFusionView)(self, batch, rows)

    def raw(self, ids_n: torch.Tensor) -> dict[str, torch.Tensor]:
        """The encoder's features [n, D] of these items of this rank's block, by modality."""
        return self._features.rows(ids_n)

    def modalities(self, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected rows v, t [n, d] of these items of this rank's block, ids ascending."""
        if self._projected is None:
            return self.dense.project(self._features.rows(ids_n))
        v_nd, t_nd = self._projected
        if len(ids_n) < len(v_nd):
            index_n = upload(ids_n - self.items.block.lo, self._device)
            v_nd, t_nd = v_nd[index_n], t_nd[index_n]
        return v_nd.float(), t_nd.float()

    @torch.no_grad()
    def ranking(self) -> Ranking:
        identity = self.items.local_weight
        items_nK = torch.cat([identity, self._local_content()], dim=1) if self.has_content else identity
        return Ranking(self._user_rows, items_nK)

    @torch.no_grad()
    def _user_rows(self, users_B: torch.Tensor) -> torch.Tensor:
        return self.users.of_users(users_B).wait()

    @torch.no_grad()
    def _local_content(self) -> torch.Tensor:
        block = self.items.block
        v_nd, t_nd = self._projected or project_items(self.dense, self._catalog, block.lo, block.hi, self._device)
        return self.dense.fuse(v_nd, t_nd)


class LinearFusionView:
    """One batch (models/backbone.py, View). Items move with their content; users do not."""

    linear: LinearContent | None = None
    v_nd: torch.Tensor
    t_nd: torch.Tensor

    def __init__(self, model: LinearFusion, batch: Batch, rows: ActiveRows) -> None:
        self._model, self.content_rows = model, rows
        users = model.users.of_pairs(batch)
        self._identity_nd = model.items.own_rows(rows.ids_n)
        items_nK = torch.cat([self._identity_nd, self._content()], dim=1) if model.has_content else self._identity_nd
        self.clean = Scored(users.wait(), items_nK)

    def _content(self) -> torch.Tensor:
        """Unperturbed, [n, C]."""
        self.v_nd, self.t_nd = self._model.modalities(self.content_rows.ids_n)
        content_nC = self._model.dense.fuse(self.v_nd, self.t_nd)
        self.linear = LinearContent(self._identity_nd, content_nC, *self._model.dense.fusion())
        return content_nC

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        content_nC = self._model.dense.fuse(v_nd, t_nd)
        return Scored(self.clean.users_BK, torch.cat([self._identity_nd, content_nC], dim=1))

    def embedding_size(self, norm: str, item_lists: list[torch.Tensor]) -> torch.Tensor:
        return embedding_size(norm, self.clean.users_BK, self._identity_nd, item_lists, self.content_rows)


class EncoderView(LinearFusionView):
    """The same where the encoder's features are what may be perturbed: v_nd and t_nd are raw rows [n, D], and what
    becomes of them is not linear."""

    def _content(self) -> torch.Tensor:
        raw = self._model.raw(self.content_rows.ids_n)
        self.v_nd, self.t_nd = movable(raw, len(self._identity_nd), self._model.dense)
        return self._model.dense.fuse(*self._model.dense.project_moved(self.v_nd, self.t_nd))

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        return super().at(*self._model.dense.project_moved(v_nd, t_nd))
