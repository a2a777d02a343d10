"""Which adversary the trainer uses, by name."""

from uatmc_dist.adversary.budget import Budget
from uatmc_dist.adversary.coordination import AscentRule
from uatmc_dist.config import AdversarialConfig


def ascent_rule(config: AdversarialConfig, num_items: int) -> AscentRule | None:
    """none: no adversary. uat: lambda = 0. uat_mc: coordinated."""
    if config.adversary == "none":
        return None
    adv_align_weight = config.adv_align_weight if config.adversary == "uat_mc" else 0.0
    return AscentRule(Budget(config.epsilon, config.norm), config.steps, adv_align_weight, num_items)
