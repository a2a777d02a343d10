"""MMGCN: one graph convolution for each modality, over users with preferences of that modality and items with its
content (Wei et al., MM 2019; the topology of MMRec's and UAT-MC's code, docs/algorithm.md, section 1.3).

For modality m with phi = LeakyReLU(0.01), mean over neighbours A, id embeddings E and preferences P^m (row vectors):

    X_0 = rownorm([P^m ; Y^m])    Y^v = z^v A_v + a_v    Y^t = z^t
    X_l = phi([phi(A X_{l-1} Theta_l), phi(X_{l-1} B_l + b_l) + E] C_l + c_l)    l = 1, 2, 3
    r   = (X^v_3 + X^t_3) / 2

E and P^m are tables and train; with model.preference=frozen P^m does not. z are the projected rows, which is what an
adversary perturbs: the scores are not linear in them, so there is no closed form and no certificate.

    u, n  users and items of this rank    d  embedding_dim    U, N  users and items of all ranks
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.models.backbone import Progress, Ranking, Scored, TableShape
from uatmc_dist.models.own_content import OwnContent
from uatmc_dist.models.projected import projected_items
from uatmc_dist.models.projectors import Projectors, content_model, project_items
from uatmc_dist.models.propagation import BipartiteGraph
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock, sum_from_owners
from uatmc_dist.parallel.upload import upload

NUM_LAYERS = 3
_VISUAL_WIDTH = 4
"""Width of the visual X_0 in d: 256 where d is 64, as published."""
Modal = dict[str, torch.Tensor]


class Nodes(NamedTuple):
    """Rows of this rank's users and of its items."""

    users_ud: torch.Tensor
    items_nd: torch.Tensor


class GraphConvolution(nn.Module):
    """Theta, B, b, C, c of one layer of one modality; input width `width`, output d."""

    def __init__(self, width: int, dim: int, first: bool) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.empty(width, width))
        self.skip = nn.Linear(width, dim)
        self.join = nn.Linear(width + dim, dim)
        nn.init.xavier_normal_(self.theta)
        nn.init.xavier_normal_(self.skip.weight)
        if first:
            nn.init.xavier_normal_(self.join.weight)

    def forward(self, rows_ud: torch.Tensor, mean_ud: torch.Tensor, identity_ud: torch.Tensor) -> torch.Tensor:
        """`mean_ud`: that of the neighbours' rows @ theta."""
        skipped_ud = F.leaky_relu(self.skip(rows_ud)) + identity_ud
        return F.leaky_relu(self.join(torch.cat([F.leaky_relu(mean_ud), skipped_ud], dim=1)))


class MMGCNContent(Projectors):
    """The dense part: projectors, A_v, the convolutions, and InfoNCE's temperature."""

    def __init__(self, widths: dict[str, int], hidden: dict[str, list[int]], dim: int) -> None:
        super().__init__(widths, hidden, dim)
        if "visual" in self.modalities:
            self.to_latent = nn.Linear(dim, _VISUAL_WIDTH * dim)
        for modality in self.modalities:
            width = latent_widths(dim)[modality]
            layers = [GraphConvolution(width if layer == 0 else dim, dim, layer == 0) for layer in range(NUM_LAYERS)]
            self.add_module(f"{modality}_layers", nn.ModuleList(layers))
        # The published logits are exp(0.07) <v, t>; ours are <v, t> / temperature.
        self.log_temperature = nn.Parameter(torch.full((1,), -0.07))

    def layers(self, modality: str) -> nn.ModuleList:
        return getattr(self, f"{modality}_layers")

    def latent(self, modality: str, z_nd: torch.Tensor) -> torch.Tensor:
        """Y^m."""
        return self.to_latent(z_nd) if modality == "visual" else z_nd

    def embed(self, graph: BipartiteGraph, identity: Nodes, preference: Modal, z: Modal) -> Nodes:
        """r of this rank's users and items. Collective."""
        split = [len(identity.users_ud), len(identity.items_nd)]
        identity_d = torch.cat(identity)
        rows = [F.normalize(torch.cat([preference[m], self.latent(m, z[m])]), dim=1) for m in self.modalities]
        for layers in zip(*map(self.layers, self.modalities), strict=True):
            # Side by side, so that the modalities share what waits: a gather a side, and the reading of the edges.
            sent = torch.cat([part @ layer.theta for part, layer in zip(rows, layers, strict=True)], dim=1)
            means = torch.cat(graph.propagate(*sent.split(split))).split([part.shape[1] for part in rows], dim=1)
            rows = [layer(*given, identity_d) for layer, *given in zip(layers, rows, means, strict=True)]
        return Nodes(*(torch.stack(rows).sum(0) / len(rows)).split(split))


def latent_widths(dim: int) -> dict[str, int]:
    return {"visual": _VISUAL_WIDTH * dim, "text": dim}


def dense_module(config: Config, catalog: Catalog) -> MMGCNContent:
    return content_model(MMGCNContent, config, catalog)


def tables(config: Config, num_users: int, num_items: int) -> dict[str, TableShape]:
    """E and P^m, with the published Xavier-normal start: E is one matrix of users and items, each P^m one of users."""
    dim = config.model.embedding_dim
    preferences = {
        f"preference_{name}": TableShape("user", num_users, width, (2 / (num_users + width)) ** 0.5)
        for name, width in latent_widths(dim).items()
    }
    std = (2 / (num_users + num_items + dim)) ** 0.5
    return {
        "user": TableShape("user", num_users, dim, std),
        **preferences,
        "item": TableShape("item", num_items, dim, std),
    }


def training_model(*arguments: Any) -> "TrainingMMGCN":
    return TrainingMMGCN(*arguments)


class TrainingMMGCN:
    """The model of one phase (models/backbone.py says what the arguments are)."""

    has_content = True

    def __init__(
        self,
        catalog: Catalog,
        known: KnownPositives,
        config: Config,
        world: Any,
        phase: PhaseName,
        dense_weights: Modal | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        from uatmc_dist.models.tables import ShardedTable  # TorchRec takes seconds to import
        from uatmc_dist.parallel.engine import DenseEngine

        self._config, self.known = config, known
        self._tables = {}
        for name, shape in tables(config, catalog.num_users, catalog.num_items).items():
            table = self._tables[name] = ShardedTable(name, shape.rows, shape.width, config.tables, world.device)
            table.initialise(shape.std, config.seed)
        self.users, self.items = self._tables["user"].block, self._tables["item"].block
        self.graph = BipartiteGraph(known, self.users, self.items, world.device)
        self.dense = dense_module(config, catalog)
        if dense_weights is not None:
            self.dense.load_state_dict(dense_weights)
        self.dense.to(world.device)
        self.content = OwnContent(self.dense, catalog, self.items, config, phase, world.device, progress)
        self.engine = DenseEngine(self.dense, config.training, config.engine, world)

    @property
    def tables(self) -> list[Any]:
        return list(self._tables.values())

    def dense_weights(self) -> Modal:
        return {**self.content.frozen, **self.engine.weights()}

    def rows_of(self, table: str, trains: bool) -> torch.Tensor:
        """This rank's rows. With `trains` they are looked up: once a step, and the optimiser runs in the backward."""
        owner = self._tables[table]
        if not trains:
            return owner.local_weight
        return owner.own_rows(torch.arange(owner.block.lo, owner.block.hi))

    def embed(self, z: Modal, identity: Nodes, preference: Modal) -> Nodes:
        return self.dense.embed(self.graph, identity, preference, z)

    def inputs(self, trains: bool) -> tuple[Nodes, Modal]:
        identity = Nodes(self.rows_of("user", trains), self.rows_of("item", trains))
        trains = trains and self._config.model.preference == "trained"
        return identity, {name: self.rows_of(f"preference_{name}", trains) for name in self.dense.modalities}

    def view(self, batch: Batch, rows: ActiveRows) -> "MMGCNView":
        return MMGCNView(self, batch, rows)

    @torch.no_grad()
    def ranking(self) -> Ranking:
        z = dict(zip(MODALITIES, self.content.of_block(), strict=True))
        nodes = self.embed(z, *self.inputs(trains=False))
        return Ranking(lambda users_B: rows_everywhere(nodes.users_ud, users_B, self.users), nodes.items_nd)


class MMGCNView:
    """One batch (models/backbone.py, View). All items may move, and users move with them."""

    linear = None

    def __init__(self, model: TrainingMMGCN, batch: Batch, rows: ActiveRows) -> None:
        self._model, self._batch, self._rows = model, batch, rows
        block = model.items
        self.content_rows = ActiveRows(torch.arange(block.lo, block.hi), block.lo)
        self._identity, self._preference = model.inputs(trains=True)
        # Leaves of their own where they are constants: what differentiates in them leaves no gradient behind.
        self.v_nd, self.t_nd = (
            rows if rows.requires_grad else rows.detach().requires_grad_()
            for rows in model.content.movable(self.content_rows.ids_n)
        )
        self.clean = self.at(self.v_nd, self.t_nd)

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        model = self._model
        z = dict(zip(MODALITIES, model.content.shown(v_nd, t_nd), strict=True))
        users_ud, items_nd = model.embed(z, self._identity, self._preference)
        active = self._rows.ids_n
        if len(active) < len(items_nd):
            items_nd = items_nd.index_select(0, upload(active - model.items.lo, items_nd.device))
        return Scored(rows_everywhere(users_ud, self._batch.users_B, model.users), items_nd)

    def embedding_size(self, norm: str, item_lists: list[torch.Tensor]) -> torch.Tensor:
        """As published, whatever the norm: mean of E[u]^2 + E[i]^2 over the pairs' items and the d columns, and mean of
        the visual preferences' squares; times the batch size, which it is divided by."""
        of_users_u, of_items_n = (rows.square().sum(1) for rows in self._identity)
        users_B, block = self._batch.users_B, self._model.users
        own_M = users_B[block.positions_of_own(users_B)]
        total = of_users_u[upload(own_M - block.lo, of_users_u.device)].sum()
        for items_B in item_lists:
            index_M = self.content_rows.places(items_B, of_items_n.device).index_M
            total = total + of_items_n[index_M].sum() / len(item_lists)
        size = total / self._identity.items_nd.shape[1]
        if "visual" in self._preference:
            visual = self._preference["visual"]
            size = size + len(users_B) * visual.square().sum() / (block.num_items * visual.shape[1])
        return size


def rows_everywhere(rows_ud: torch.Tensor, ids_B: torch.Tensor, block: ItemBlock) -> torch.Tensor:
    """Rows [B, d] of any users, on every rank: B x d numbers travel. Collective, differentiable."""
    own_rows = lambda ids_M: rows_ud.index_select(0, upload(ids_M - block.lo, rows_ud.device))  # noqa: E731
    return sum_from_owners(own_rows, ids_B, block)


class MMGCNModel(TrainedModel):
    """A trained MMGCN, whole on one CPU: users_UK and items are those of the last layer."""

    history_NK = None
    is_linear = False

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        tables: Modal,
        dense: MMGCNContent,
        path: Path | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.path, self.config, self.dense = path, config, dense.requires_grad_(False)
        given = dense, catalog, 0, catalog.num_items, torch.device("cpu")
        self.v_Nd, self.t_Nd = project_items(*given) if path is None else projected_items(*given, progress=progress)
        self.known = KnownPositives.of_training(catalog)
        users, items = ItemBlock(catalog.num_users, 0, 1), ItemBlock(catalog.num_items, 0, 1)
        self.graph = BipartiteGraph(self.known, users, items, torch.device("cpu"))
        self.identity = Nodes(tables["user"], tables["item"])
        self.preference = {name: tables[f"preference_{name}"] for name in dense.modalities}
        self.users_UK, self._items_NK = self.embed(self.v_Nd, self.t_Nd)

    def embed(self, v_Nd: torch.Tensor, t_Nd: torch.Tensor) -> Nodes:
        z = dict(zip(MODALITIES, (v_Nd, t_Nd), strict=True))
        return self.dense.embed(self.graph, self.identity, self.preference, z)

    def items(self) -> torch.Tensor:
        return self._items_NK


trained_model = MMGCNModel
