"""The premise of coordination, measured (docs/algorithm.md, section 4.6): are the gradients of the two modalities views
of one vector, do different users make them up, and what does each kind of step do to the loss?"""

from collections.abc import Callable
from typing import Any

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.mismatch.gradients import cosines, items_without_gradient, single_matrix_residual, turned
from uatmc_dist.evaluation.mismatch.steps import rises
from uatmc_dist.evaluation.mismatch.training_pairs import Measured, TrainingPairs
from uatmc_dist.evaluation.mismatch.users import NUM_TOP, contributors, reach, shifts

_EPSILONS = (0.1, 0.5)


def measure_mismatch(
    config: Config,
    catalog: Catalog,
    model: Measured,
    start: Callable[[], Measured],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """What mismatch.json holds: the model, and the one that it started from, the run of `start_from` or the seeded
    initial weights. Collective where the models are in row blocks.

    Raises UserError without two modalities.
    """
    if model.dense is None:
        raise UserError("this model has no content (model.content=false), so it has no modalities to compare")
    if len(model.dense.modalities) < 2:
        raise UserError(f"this model has {model.dense.modalities[0]} features alone; there is nothing to compare")
    stages = {}
    for done, (stage, measured) in enumerate((("before", start()), ("after", model))):
        stages[stage] = _measured(TrainingPairs(measured, catalog), config)
        progress(done + 1, 2)
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


def _measured(pairs: TrainingPairs, config: Config) -> dict[str, Any]:
    adversarial = config.adversarial
    gradients = pairs.gradients()
    steps = rises(pairs, adversarial, sorted({*_EPSILONS, adversarial.epsilon}))
    return {
        "pairs": len(pairs.users_P),
        "items": pairs.model.block.num_items,
        "items_without_gradient": items_without_gradient(gradients),
        "single_matrix_residual": single_matrix_residual(*gradients),
        "cosine": cosines(pairs, gradients),
        "direction": turned(pairs, gradients, adversarial.adv_align_weight),
        "contributors": contributors(pairs, gradients),
        "reach_ratio": reach(pairs.model),
        **shifts(pairs, adversarial),
        "clean_loss": pairs.loss(),
        "strength": steps,
    }


__all__ = ["Measured", "measure_mismatch"]
