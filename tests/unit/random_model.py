"""A model with random weights, and scenes on it, for tests of attacks and certificates."""

import torch

from uatmc_dist.adversary.budget import Budget
from uatmc_dist.evaluation.scenes import Bars, Scene
from uatmc_dist.models.projectors import ContentModel


class RandomModel:
    """A TrainedModel without its files."""

    path = None

    def __init__(self, users: int, items: int, dim: int, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.dense = ContentModel(3, 3, [4], [4], dim)
        self.dense.requires_grad_(False)
        for weight in (self.dense.w_v, self.dense.w_t, self.dense.bias):
            weight.copy_(scale * normal(*weight.shape))
        self.users_UK, self.identity_Nd = normal(users, 2 * dim), normal(items, dim)
        self.v_Nd, self.t_Nd = (torch.nn.functional.normalize(normal(items, dim), dim=1) for _ in range(2))

    def items(self) -> torch.Tensor:
        return torch.cat([self.identity_Nd, self.dense.fuse(self.v_Nd, self.t_Nd)], dim=1)


def scene(model: RandomModel, k: int, anchors=None, items=None, surrogate=None) -> Scene:
    anchors = torch.arange(len(model.users_UK)) if anchors is None else torch.as_tensor(anchors)
    items = torch.arange(len(model.identity_Nd)) if items is None else torch.as_tensor(items)
    return Scene.draw(model, Bars.of(model, k), k, items, anchors, surrogate)  # type: ignore[arg-type]


BUDGETS = {
    f"{norm}-{definition}": lambda epsilon, dim, norm=norm, definition=definition: Budget.of_attack(
        epsilon, norm, definition, dim
    )
    for norm in ("linf", "l2")
    for definition in ("paper", "training")
}
