"""How much each kind of step really raises the loss when all items are perturbed."""

from typing import Any

from uatmc_dist.adversary.budget import Deltas
from uatmc_dist.adversary.defenses import adversary
from uatmc_dist.config import AdversarialConfig
from uatmc_dist.evaluation.mismatch.training_pairs import TrainingPairs

_ONE_STEP = ("noise", "visual_only", "text_only", "uat", "uat_mc")
# By the number of steps.
_SEVERAL: dict[str, dict[str, Any]] = {
    "uat x2": {"adversary": "uat", "steps": 2},
    "uat x3": {"adversary": "uat", "steps": 3},
    "user_coordination": {"adversary": "user_coordination", "steps": 2},
    "conditional_gradient x2": {"adversary": "conditional_gradient", "steps": 2},
    "conditional_gradient x3": {"adversary": "conditional_gradient", "steps": 3},
}


def single_steps(pairs: TrainingPairs, config: AdversarialConfig) -> dict[str, Deltas]:
    """A single step from zero, by name, at epsilon = 1: it is as long as the radius, along a direction that does not
    depend on it. Collective."""
    return {name: _deltas(pairs, config, 1.0, adversary=name, steps=1) for name in _ONE_STEP}


def rises(
    pairs: TrainingPairs, config: AdversarialConfig, epsilon: float, single: dict[str, Deltas], clean: float
) -> dict[str, float]:
    """The rise of the loss by name of the step, over the `clean` one; norm and lambda are the configuration's.
    Collective."""
    found = {name: pairs.loss(*(epsilon * delta for delta in moved)) - clean for name, moved in single.items()}
    for name, changes in _SEVERAL.items():
        found[name] = pairs.loss(*_deltas(pairs, config, epsilon, **changes)) - clean
    return found


def _deltas(pairs: TrainingPairs, config: AdversarialConfig, epsilon: float, **changes: object) -> Deltas:
    changed = config.model_copy(update={"epsilon": epsilon, "adv_weight": 1.0, **changes})
    found = adversary(changed, pairs.model.block.num_items, seed=0)
    assert found is not None
    return found(pairs.problem, pairs.clean_loss, 0)
