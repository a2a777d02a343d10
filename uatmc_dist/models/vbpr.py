"""The VBPR backbone for training: sharded tables, projectors and fusion, raw features by the row.

n  rows of this rank    d  embedding_dim    K  2d with content, d without
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.projected import projected_items
from uatmc_dist.models.projectors import (
    ContentModel,
    build_content_model,
    initialised_content_model,
    project_items,
    raw_rows,
)
from uatmc_dist.models.tables import ShardedBags, ShardedTable
from uatmc_dist.models.users import UserVectors
from uatmc_dist.parallel.engine import DenseEngine
from uatmc_dist.parallel.process_group import World

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class VBPR:
    """The model of one phase, with fresh optimisers.

    `dense_weights` (float32, by parameter name) replaces the initial ones (model.initial); the tables are seeded and
    may be loaded afterwards. `known` has the users' histories. In the adversarial phase the projectors are frozen,
    this rank's items are projected once, here, and no raw feature is read again. `progress(done, total)` is told of
    them.
    """

    def __init__(
        self,
        catalog: Catalog,
        known: KnownPositives,
        config: Config,
        world: World,
        phase: PhaseName,
        dense_weights: dict[str, torch.Tensor] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._catalog, self._device = catalog, world.device
        self.has_content = config.model.content
        dim = config.model.embedding_dim
        width = 2 * dim if self.has_content else dim
        self.users = UserVectors(config, catalog.num_users, width, known, world.device)
        self.items = ShardedTable("item", catalog.num_items, dim, config.tables, world.device)
        for table in self.tables:
            table.initialise(config)
        self._projected: tuple[torch.Tensor, torch.Tensor] | None = None
        self._frozen: dict[str, torch.Tensor] = {}
        self._dense: ContentModel | None = None
        module: torch.nn.Module = torch.nn.Module()
        if self.has_content:
            if dense_weights is None:
                self._dense = module = initialised_content_model(config, catalog)
            else:
                self._dense = module = build_content_model(config, catalog)
                self._dense.load_state_dict(dense_weights)
            self._dense.to(world.device)
            if dense_weights is None and config.model.initial == "content":
                # Components may differ in their last bits, or in signs, between processors; the rows below need the
                # first rank's, which the engine would hand out too late.
                for parameter in self._dense.parameters():
                    dist.broadcast(parameter.data, 0)
                self.users.start_from_content(self._local_content())
            if phase == "adversarial":
                self._dense.freeze_projectors()
                block = self.items.block
                dtype = NUMBER_FORMATS[config.adversarial.projected_precision]
                self._projected = projected_items(
                    self._dense, catalog, block.lo, block.hi, world.device, dtype, progress
                )
                self._frozen = {
                    name: p.detach().cpu().clone() for name, p in self._dense.named_parameters() if not p.requires_grad
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
        """float32 weights of projectors and fusion, frozen ones included. Collective."""
        return {**self._frozen, **self.engine.weights()}

    def modalities(self, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected rows v, t [n, d] of these items of this rank's block."""
        if self._projected is None:
            return self.dense.project(raw_rows(self._catalog, ids_n.numpy(), self._device))
        v_nd, t_nd = self._projected
        if len(ids_n) < len(v_nd):
            index_n = (ids_n - self.items.block.lo).to(self._device)
            v_nd, t_nd = v_nd[index_n], t_nd[index_n]
        return v_nd.float(), t_nd.float()

    @torch.no_grad()
    def local_items(self) -> torch.Tensor:
        """Embeddings [n, K] of this rank's whole block, for ranking."""
        identity = self.items.local_weight
        if not self.has_content:
            return identity
        return torch.cat([identity, self._local_content()], dim=1)

    @torch.no_grad()
    def _local_content(self) -> torch.Tensor:
        block = self.items.block
        v_nd, t_nd = self._projected or project_items(self.dense, self._catalog, block.lo, block.hi, self._device)
        return self.dense.fuse(v_nd, t_nd)
