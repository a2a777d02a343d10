"""Where attacks on a trained model take place: what is computed once, and the scenes of each seed and stratum."""

from typing import Any, Protocol

import torch

from uatmc_dist.adversary.budget import Budget
from uatmc_dist.attacks.base import Targets
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.graph_scenes import GraphScene, GraphStates
from uatmc_dist.evaluation.scenes import Bars, Scene
from uatmc_dist.models.neighbourhood import CleanState

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

    def moved(self, deltas: Any, budget: Budget) -> Any: ...

    def hits(self, moved: Any) -> torch.Tensor: ...

    def hits_by_length(self, moved: list[Any]) -> torch.Tensor: ...

    def mean_ranks(self, moved: list[Any]) -> torch.Tensor: ...

    def certified_hits(self, budget: Budget) -> torch.Tensor | None: ...


def lengths(k: int, num_items: int) -> tuple[int, ...]:
    """10, 20, 50, 100 and k, as far as the catalog goes. UserError where k itself is too long."""
    if k >= num_items:
        raise UserError(f"attack.k: {k} is not below the number of items ({num_items}); give a smaller one")
    return tuple(sorted({k, *(usual for usual in HIT_KS if usual < num_items)}))


class Stage:
    """Of a model under linear fusion, and the undefended one of the transfer attack; or of MMGCN, whose targets are
    attacked twice: with everybody in reach moving along, and with everybody else held fixed."""

    def __init__(self, model: Any, surrogate: Any, k: int) -> None:
        self._model, self._surrogate, self._k = model, surrogate, k
        self.ks = lengths(k, len(model.v_Nd))
        if model.is_linear:
            self._bars = Bars.of(model, self.ks)
            self._surrogate_bars = None if surrogate is None else Bars.of(surrogate, self.ks)
        else:
            self._states = GraphStates(CleanState(model), CleanState(model, torch.float64))

    def scenes(self, items_T: torch.Tensor, anchors_A: torch.Tensor) -> list[AnyScene]:
        if not self._model.is_linear:
            given = self._states, anchors_A, items_T, self._k, self.ks
            return [GraphScene(*given, others_held) for others_held in (False, True)]
        twin: Targets | None = None
        if self._surrogate is not None and self._surrogate_bars is not None:
            twin = Scene.draw(self._surrogate, self._surrogate_bars, self._k, items_T, anchors_A, None).targets
        return [Scene.draw(self._model, self._bars, self._k, items_T, anchors_A, twin)]
