"""What is planned, in sizes and options, and amounts of work.

U, N  users and items    d  embedding_dim    K  width of an embedding    C  its columns of content    R  ranks
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from uatmc_dist.config import (
    AdversarialConfig,
    AdversaryName,
    BackboneName,
    ModelConfig,
    Objective,
    PerturbedRows,
    PhaseName,
    TableOptimizer,
    TablesConfig,
    TrainingConfig,
    UserKind,
)
from uatmc_dist.parallel.machine import Precision

if TYPE_CHECKING:
    from uatmc_dist.models.backbone import TableShape

FLOAT, INDEX = 4, 8


@dataclass(frozen=True)
class Problem:
    """Sizes and options that decide what a run costs; names and defaults are those of the configuration."""

    users: int
    items: int
    interactions: int
    """Training pairs."""
    visual_dim: int = 4096
    text_dim: int = 384
    visual_hidden: tuple[int, ...] = tuple(ModelConfig().visual_hidden)
    text_hidden: tuple[int, ...] = tuple(ModelConfig().text_hidden)
    backbone: BackboneName = ModelConfig().backbone
    user: UserKind = ModelConfig().user
    embedding_dim: int = ModelConfig().embedding_dim
    batch_size: int = TrainingConfig().batch_size
    optimizer: TableOptimizer = TablesConfig().optimizer
    objective: Objective = AdversarialConfig().objective
    """Of the phase that is asked about."""
    adversary: AdversaryName = AdversarialConfig().adversary
    at: PerturbedRows = AdversarialConfig().at
    score_precision: Precision = "fp32"
    projected_precision: Precision = "fp32"

    @property
    def is_graph(self) -> bool:
        return self.backbone == "mmgcn"

    @property
    def content_width(self) -> int:
        """C; of mmgcn, whose items are content alone, d."""
        return (2 if self.backbone == "vbpr_own_users" else 1) * self.embedding_dim

    @property
    def width(self) -> int:
        """K."""
        return self.content_width if self.is_graph else self.embedding_dim + self.content_width

    def tables(self) -> "dict[str, TableShape]":
        """Sharded tables by name, as the backbone has them."""
        return _tables(self.backbone, self.user, self.embedding_dim, self.users, self.items)

    @property
    def has_rows(self) -> bool:
        return self.user != "history"

    @property
    def has_history(self) -> bool:
        return self.user != "row"

    @property
    def history(self) -> float:
        """Mean number of items that a user has bought; nothing taken off for dropout."""
        return self.interactions / self.users if self.has_history else 0.0

    @property
    def perturbs(self) -> bool:
        return self.adversary not in ("none", "certified")

    @property
    def ascends(self) -> bool:
        return self.perturbs and self.adversary != "noise"

    @property
    def coordinates(self) -> bool:
        return self.adversary == "uat_mc"

    def trains_projectors(self, phase: PhaseName) -> bool:
        """If not, items are rows that were projected once."""
        return phase == "clean" or self.at == "encoder"

    @property
    def raw_width(self) -> int:
        """Of both modalities."""
        return self.visual_dim + self.text_dim

    @property
    def stored_bytes(self) -> int:
        """Of an item's raw features, in float16."""
        return 2 * self.raw_width

    def rows(self, ranks: int) -> int:
        """n: items of the largest block that a step touches; for the sampled objective what evenly drawn items of
        the batch would be, an upper bound of the mean."""
        if self.objective != "sampled":
            return -(-self.items // ranks)
        distinct = self.items * (1 - (1 - 1 / self.items) ** (2 * self.batch_size))
        return -(-round(distinct) // ranks)

    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the projectors' linear layers."""
        widths = (
            (self.visual_dim, *self.visual_hidden, self.embedding_dim),
            (self.text_dim, *self.text_hidden, self.embedding_dim),
        )
        return [pair for each in widths for pair in pairwise(each)]

    def dense_parameters(self, phase: PhaseName) -> int:
        """Parameters that train: fusion or convolutions, and projectors with their LayerNorms where they do."""
        rest = self.convolutions() if self.is_graph else self.fusion()
        if not self.trains_projectors(phase):
            return rest
        norms = 2 * (sum(self.visual_hidden) + sum(self.text_hidden))
        return rest + 1 + norms + sum((inputs + 1) * outputs for inputs, outputs in self.layers())

    def fusion(self) -> int:
        """W_v, W_t and the bias."""
        return 2 * self.embedding_dim**2 + self.content_width

    def convolution_widths(self) -> list[int]:
        """Width of what enters each convolution, the visual ones first."""
        return [width for modality in zip(*self.layer_widths(), strict=True) for width in modality]

    def layer_widths(self) -> list[tuple[int, int]]:
        """Of each layer (visual, text): what travels side by side."""
        dim = self.embedding_dim
        return [(4 * dim, dim), (dim, dim), (dim, dim)]

    def convolutions(self) -> int:
        """The visual latent layer, and Theta, B, b, C, c of each convolution."""
        dim = self.embedding_dim
        each = (width**2 + (width + 1) * dim + (width + dim + 1) * dim for width in self.convolution_widths())
        return (dim + 1) * 4 * dim + sum(each)


@dataclass(frozen=True)
class Work:
    """What a term uses up on one rank."""

    score_flops: float = 0.0
    """Multiplications and additions of the products of the score passes."""
    dense_flops: float = 0.0
    """The same of PyTorch's own products: projectors, fusion, coordinate and perturb."""
    sigmas: float = 0.0
    """Sigmoids, each an exponential and a reciprocal."""
    logs: float = 0.0
    elementwise: float = 0.0
    """CPU: numbers that a pass over a tile in the cache goes through. GPU: instructions of one lane."""
    updates: float = 0.0
    """Floats of embedding rows looked up and updated by the fused optimiser, where that is not bound by memory."""
    bytes: float = 0.0
    """Read from and written to memory, by tensors of one row an item or a user."""
    fresh_bytes: float = 0.0
    """CPU: of new tensors that the C library takes from the system and gives back, page by page, each time."""
    feature_bytes: float = 0.0
    """Raw features read on the host."""
    ring_bytes: float = 0.0
    """Sent by this rank in all-reduce, all-gather and reduce-scatter."""
    collectives: int = 0

    def counts(self) -> dict[str, float]:
        return {name: amount for name, amount in asdict(self).items() if amount}


@lru_cache(maxsize=64)
def _tables(name: BackboneName, user: UserKind, dim: int, users: int, items: int) -> "dict[str, TableShape]":
    from uatmc_dist.config import Config
    from uatmc_dist.models.backbone import backbone

    model: Any = {"backbone": name, "user": user, "embedding_dim": dim}
    config = Config(name="planned", catalog="planned", model=model)  # type: ignore[arg-type]
    return backbone(config.model).tables(config, users, items)
