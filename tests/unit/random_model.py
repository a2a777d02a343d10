"""A model with random weights, and scenes on it, for tests of attacks and certificates."""

from collections.abc import Sequence

import torch

from uatmc_dist.adversary.budget import Ball
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.evaluation.scenes import Cast, Scene
from uatmc_dist.evaluation.stage import lengths
from uatmc_dist.models.projectors import ContentModel


def content_model(dim: int, modalities: Sequence[str] = MODALITIES) -> ContentModel:
    """Narrow, with a hidden layer each."""
    return ContentModel(dict.fromkeys(modalities, 3), {name: [4] for name in MODALITIES}, dim)


class RandomModel:
    """A TrainedModel without its files."""

    path = None
    is_linear = True

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        seed: int = 0,
        scale: float = 1.0,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.dense = content_model(dim, modalities)
        self.dense.requires_grad_(False)
        for weight in (*self.dense.fusions(), self.dense.bias):
            weight.copy_(scale * normal(*weight.shape))
        self.users_UK, self.identity_Nd = normal(users, 2 * dim), normal(items, dim)
        rows = [torch.nn.functional.normalize(normal(items, dim), dim=1) for _ in MODALITIES]
        self.v_Nd, self.t_Nd = (
            row_Nd if modality in modalities else torch.zeros_like(row_Nd)
            for modality, row_Nd in zip(MODALITIES, rows, strict=True)
        )

    def items(self) -> torch.Tensor:
        return self.embed(self.v_Nd, self.t_Nd)[1]

    def embed(self, v_Nd: torch.Tensor, t_Nd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.users_UK, torch.cat([self.identity_Nd, self.dense.fuse(v_Nd, t_Nd)], dim=1)


def scene(model: RandomModel, k: int, anchors=None, items=None, surrogate=None) -> Scene:
    anchors = torch.arange(len(model.users_UK)) if anchors is None else torch.as_tensor(anchors)
    items = torch.arange(len(model.identity_Nd)) if items is None else torch.as_tensor(items)
    cast = Cast.whole(model, lengths(k, len(model.identity_Nd)))  # type: ignore[arg-type]
    return cast.scene(k, items, anchors, surrogate)


BUDGETS = {
    f"{norm}-{definition}": lambda epsilon, dim, norm=norm, definition=definition: Ball.of_attack(
        epsilon, norm, definition, dim
    )
    for norm in ("linf", "l2")
    for definition in ("paper", "training")
}
