"""The premise of coordination, measured (docs/algorithm.md, section 4.6): are the gradients of the two modalities views
of one vector, do different users make them up, and what does each kind of step do to the loss?"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from uatmc_dist.adversary.budget import Deltas
from uatmc_dist.config import Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.kept import KeptParts
from uatmc_dist.evaluation.mismatch.gradients import (
    Gradients,
    cosines,
    items_without_gradient,
    single_matrix_residual,
    turned,
)
from uatmc_dist.evaluation.mismatch.steps import rises, single_steps
from uatmc_dist.evaluation.mismatch.training_pairs import Measured, TrainingPairs
from uatmc_dist.evaluation.mismatch.users import NUM_TOP, contributors, reach, shifts

_EPSILONS = (0.1, 0.5)


def measure_mismatch(
    config: Config,
    catalog: Catalog,
    model: Measured,
    start: Callable[[], Measured],
    progress: Callable[[int, int], None] = lambda done, total: None,
    kept: KeptParts | None = None,
) -> dict[str, Any]:
    """What mismatch.json holds: the model, and the one that it started from, the run of `start_from` or the seeded
    initial weights. `progress(done, total)` counts figures of both; what `kept` has is not measured again. Collective
    where the models are in row blocks.

    Raises UserError without two modalities.
    """
    if model.dense is None:
        raise UserError("this model has no content (model.content=false), so it has no modalities to compare")
    if len(model.dense.modalities) < 2:
        raise UserError(f"this model has {model.dense.modalities[0]} features alone; there is nothing to compare")
    kept, stages = kept or KeptParts(None), {}
    for index, (stage, measured) in enumerate((("before", start), ("after", lambda: model))):
        figures = _figures(_Stage(measured, catalog, config))
        found = {}
        for done, (name, figure) in enumerate(figures.items(), start=index * len(figures)):
            found[name] = kept.found([stage, name], figure)
            progress(done + 1, 2 * len(figures))
        strength = [{"epsilon": epsilon, "rise": found.pop(f"rise at {epsilon}")} for epsilon in _epsilons(config)]
        stages[stage] = {**found.pop("size"), **found.pop("shifts"), **found, "strength": strength}
    adversarial = config.adversarial
    return {
        "before_is": "initial weights" if config.start_from is None else str(config.start_from),
        "backbone": config.model.backbone,
        "adv_align_weight": adversarial.adv_align_weight,
        "epsilon": adversarial.epsilon,
        "norm": adversarial.norm,
        "top_contributors": NUM_TOP,
        **stages,
    }


class _Stage:
    """One of the two models; what several figures need, made for the first of them."""

    def __init__(self, measured: Callable[[], Measured], catalog: Catalog, config: Config) -> None:
        self._measured, self._catalog, self.config = measured, catalog, config

    @cached_property
    def pairs(self) -> TrainingPairs:
        return TrainingPairs(self._measured(), self._catalog)

    @cached_property
    def gradients(self) -> Gradients:
        return self.pairs.gradients()

    @cached_property
    def clean_loss(self) -> float:
        return self.pairs.loss()

    @cached_property
    def single_steps(self) -> dict[str, Deltas]:
        return single_steps(self.pairs, self.config.adversarial)


def _figures(of: _Stage) -> dict[str, Callable[[], Any]]:
    adversarial = of.config.adversarial

    def rise_at(epsilon: float) -> Callable[[], dict[str, float]]:
        return lambda: rises(of.pairs, adversarial, epsilon, of.single_steps, of.clean_loss)

    return {
        "size": lambda: {"pairs": len(of.pairs.users_P), "items": of.pairs.model.block.num_items},
        "items_without_gradient": lambda: items_without_gradient(of.gradients),
        "single_matrix_residual": lambda: single_matrix_residual(*of.gradients),
        "cosine": lambda: cosines(of.pairs, of.gradients),
        "direction": lambda: turned(of.pairs, of.gradients, adversarial.adv_align_weight),
        "contributors": lambda: contributors(of.pairs, of.gradients),
        "reach_ratio": lambda: reach(of.pairs.model),
        "shifts": lambda: shifts(of.pairs, adversarial),
        "clean_loss": lambda: of.clean_loss,
        **{f"rise at {epsilon}": rise_at(epsilon) for epsilon in _epsilons(of.config)},
    }


def _epsilons(config: Config) -> list[float]:
    return sorted({*_EPSILONS, config.adversarial.epsilon})


__all__ = ["Measured", "measure_mismatch"]
