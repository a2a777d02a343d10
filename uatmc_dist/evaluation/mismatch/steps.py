"""How much each kind of step really raises the loss when all items are perturbed."""

from collections.abc import Sequence
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


def rises(pairs: TrainingPairs, config: AdversarialConfig, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """For each epsilon, the rise of the loss by name of the step; norm and lambda are the configuration's.
    Collective."""
    num_items, clean = pairs.model.block.num_items, pairs.loss()

    def deltas(epsilon: float, **changes: object) -> Deltas:
        changed = config.model_copy(update={"epsilon": epsilon, "adv_weight": 1.0, **changes})
        found = adversary(changed, num_items, seed=0)
        assert found is not None
        return found(pairs.problem, pairs.clean_loss, 0)

    # A single step from zero is as long as the radius, along a direction that does not depend on it.
    single = {name: deltas(1.0, adversary=name, steps=1) for name in _ONE_STEP}
    table = []
    for epsilon in epsilons:
        found = {name: pairs.loss(*(epsilon * delta for delta in moved)) - clean for name, moved in single.items()}
        for name, changes in _SEVERAL.items():
            found[name] = pairs.loss(*deltas(epsilon, **changes)) - clean
        table.append({"epsilon": epsilon, "rise": found})
    return table
