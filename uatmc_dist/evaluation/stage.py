"""Where attacks on a trained model take place: what is computed once, and the scenes of each seed and stratum."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from uatmc_dist.adversary.budget import Budget
from uatmc_dist.attacks.base import Targets
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.graph_scenes import GraphScene, GraphStates
from uatmc_dist.evaluation.scenes import Cast
from uatmc_dist.models.neighbourhood import CleanState, OwnMMGCN

HIT_KS = (10, 20, 50, 100)


class AnyScene(Protocol):
    """Targets and anchors, and the judge of what a perturbation reaches. What `moved` gives, the others take."""

    @property
    def targets(self) -> Any: ...

    @property
    def k(self) -> int: ...

    @property
    def ks(self) -> tuple[int, ...]: ...

    @property
    def suffix(self) -> str:
        """Of the attacks' names in reports."""
        ...

    @property
    def clean(self) -> Any:
        """`moved` without any perturbation."""
        ...

    def alone(self, index: int) -> "AnyScene":
        """With one of the targets."""
        ...

    def moved(self, deltas: Any, budget: Budget) -> Any: ...

    def hits(self, moved: Any) -> torch.Tensor: ...

    def hits_by_length(self, moved: list[Any]) -> torch.Tensor: ...

    def mean_ranks(self, moved: list[Any]) -> torch.Tensor: ...

    def ranks(self, moved: list[Any]) -> torch.Tensor: ...

    def certified_hits(self, budget: Budget, modalities: Sequence[str] = MODALITIES) -> torch.Tensor | None: ...


def lengths(k: int, num_items: int) -> tuple[int, ...]:
    """10, 20, 50, 100 and k, as far as the catalog goes. UserError where k itself is too long."""
    if k >= num_items:
        raise UserError(f"attack.k: {k} is not below the number of items ({num_items}); give a smaller one")
    return tuple(sorted({k, *(usual for usual in HIT_KS if usual < num_items)}))


class Stage(Protocol):
    @property
    def ks(self) -> tuple[int, ...]: ...

    def scenes(self, items_T: torch.Tensor, anchors_A: torch.Tensor) -> Sequence[AnyScene]: ...


class LinearStage:
    """Of a model under linear fusion, and the undefended one of the transfer attack."""

    def __init__(self, model: Cast, surrogate: Cast | None, k: int) -> None:
        self._model, self._surrogate, self._k = model, surrogate, k

    @property
    def ks(self) -> tuple[int, ...]:
        return self._model.bars.ks

    def scenes(self, items_T: torch.Tensor, anchors_A: torch.Tensor) -> Sequence[AnyScene]:
        twin: Targets | None = None
        if self._surrogate is not None:
            twin = self._surrogate.scene(self._k, items_T, anchors_A, None).targets
        return [self._model.scene(self._k, items_T, anchors_A, twin)]


class GraphStage:
    """Of MMGCN, whose targets are attacked twice: with everybody in reach moving along, and with everybody else held
    fixed."""

    def __init__(self, model: OwnMMGCN, k: int) -> None:
        """Collective, as are its scenes."""
        self._k, self.ks = k, lengths(k, model.nodes.items.num_items)
        self._states = GraphStates(CleanState(model), CleanState(model, torch.float64))

    def scenes(self, items_T: torch.Tensor, anchors_A: torch.Tensor) -> Sequence[AnyScene]:
        scene = GraphScene.of(self._states, anchors_A, items_T, self._k, self.ks)
        return [scene, scene.held()]


def stage_of(model: Any, k: int, surrogate: Any = None) -> Stage:
    """Of a whole model in this process. UserError where k is not below the number of items."""
    if not model.is_linear:
        return GraphStage(OwnMMGCN.whole(model), k)
    ks = lengths(k, len(model.v_Nd))
    return LinearStage(Cast.whole(model, ks), None if surrogate is None else Cast.whole(surrogate, ks), k)
