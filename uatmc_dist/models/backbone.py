"""What training, ranking, attacks, certificate and export know of a backbone.

A backbone is a module of this folder with the name that config.BackboneName has: its functions make the dense part,
the model of a training phase and the trained model. Nothing outside the module knows how items and users come about.

    B  pairs of a global batch    n  active items of this rank    K  width of an embedding    d  embedding_dim
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import torch

from uatmc_dist.config import Config, ModelConfig, PhaseName
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.parallel.item_parallel import ActiveRows
from uatmc_dist.parallel.process_group import World

if TYPE_CHECKING:
    from uatmc_dist.models.trained import TrainedModel

Progress = Callable[[int, int], None]


class Scored(NamedTuple):
    """Embeddings whose dot products are the scores."""

    users_BK: torch.Tensor
    """The same on every rank."""
    items_nK: torch.Tensor
    """This rank's active items."""


class LinearContent(NamedTuple):
    """The content of items under linear fusion: [identity | W_v v + W_t t + bias], C columns of content."""

    identity_nd: torch.Tensor
    content_nC: torch.Tensor
    w_v: torch.Tensor
    """[C, d]"""
    w_t: torch.Tensor
    bias: torch.Tensor


class View(Protocol):
    """One batch as the model sees it on this rank; differentiable in all that trains."""

    clean: Scored
    v_nd: torch.Tensor
    """Projected visual rows that may be perturbed, of the items `content_rows`."""
    t_nd: torch.Tensor
    content_rows: ActiveRows
    linear: LinearContent | None
    """None where the fusion is not linear: there is no closed form and no certificate then."""

    def at(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> Scored:
        """The embeddings with these rows in place of v and t."""
        ...

    def embedding_size(self, norm: str, item_lists: list[torch.Tensor]) -> torch.Tensor:
        """This rank's partial of the regulariser, to be divided by the batch size."""
        ...


class Ranking(NamedTuple):
    """What full ranking needs, with the weights of this moment."""

    user_rows: Callable[[torch.Tensor], torch.Tensor]
    """Global user ids [B] -> embeddings [B, K] on every rank. Collective."""
    items_nK: torch.Tensor
    """This rank's whole block."""


class TrainingModel(Protocol):
    """The model of one phase, with fresh optimisers: sharded tables, and a dense part under DeepSpeed."""

    engine: Any
    has_content: bool

    @property
    def tables(self) -> list[Any]:
        """Sharded tables, as in `Backbone.tables`."""
        ...

    @property
    def dense(self) -> Any: ...

    def dense_weights(self) -> dict[str, torch.Tensor]:
        """float32 weights by parameter name, frozen ones included. Collective."""
        ...

    def view(self, batch: Batch, rows: ActiveRows) -> View:
        """Collective: the rows of the batch are looked up."""
        ...

    def ranking(self) -> Ranking:
        """Collective."""
        ...


class TableShape(NamedTuple):
    of: Literal["user", "item"]
    """What has a row of it."""
    rows: int
    width: int
    std: float
    """Of the seeded normal rows that it starts with."""


class Backbone(Protocol):
    def tables(self, config: Config, num_users: int, num_items: int) -> dict[str, TableShape]:
        """The sharded tables by name, in the order of a model's checkpoints."""
        ...

    def dense_module(self, config: Config, catalog: Catalog) -> torch.nn.Module:
        """The dense part with seeded weights, the same on any rank."""
        ...

    def training_model(
        self,
        catalog: Catalog,
        known: KnownPositives,
        config: Config,
        world: World,
        phase: PhaseName,
        dense_weights: dict[str, torch.Tensor] | None,
        progress: Progress,
    ) -> TrainingModel:
        """`dense_weights` (float32, by parameter name) replace the initial ones; the tables are seeded and may be
        loaded afterwards. In the adversarial phase the projectors are frozen, this rank's items are projected once, and
        no raw feature is read again; `progress(done, total)` is told of them."""
        ...

    def trained_model(
        self,
        config: Config,
        catalog: Catalog,
        tables: dict[str, torch.Tensor],
        dense: torch.nn.Module | None,
        path: Path | None,
        progress: Progress,
    ) -> "TrainedModel":
        """From whole tables and the dense part. `path`: the run that they were saved by."""
        ...


def backbone(model: ModelConfig) -> Backbone:
    return cast(Backbone, importlib.import_module(f"uatmc_dist.models.{model.backbone}"))
