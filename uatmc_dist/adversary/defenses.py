"""What the trainer defends with, by name.

A defence either perturbs the items of a second loss term (an `Adversary`) or raises the scores of the negatives by
the worst that any perturbation could do (`certified_bonus`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from uatmc_dist.adversary.budget import Budget, Deltas, worst_case_bonus
from uatmc_dist.adversary.coordination import AscentRule, LinearView, closed_form
from uatmc_dist.config import AdversarialConfig
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.models.projectors import ContentModel
from uatmc_dist.seeding import normal_rows

_NOISE_ROWS = 4096


class Adversary(Protocol):
    def __call__(
        self, view: LinearView, clean_items_nK: torch.Tensor, clean_gradient: Callable[[], torch.Tensor], step: int
    ) -> Deltas:
        """Perturbations of this rank's active rows at one step. `clean_gradient()` is g at delta = 0."""
        ...


@dataclass(frozen=True)
class Ascent:
    """Climbs the loss: uat and uat_mc, and uat in one modality alone."""

    rule: AscentRule

    def __call__(
        self, view: LinearView, clean_items_nK: torch.Tensor, clean_gradient: Callable[[], torch.Tensor], step: int
    ) -> Deltas:
        return closed_form(view, self.rule, clean_items_nK, clean_gradient())


@dataclass(frozen=True)
class Noise:
    """A random direction of full length for each row and step, the same on any number of ranks."""

    budget: Budget
    seed: int

    def __call__(
        self, view: LinearView, clean_items_nK: torch.Tensor, clean_gradient: Callable[[], torch.Tensor], step: int
    ) -> Deltas:
        first, (num_rows, dim) = view.rows.first, view.v_nd.shape
        drawn = normal_rows(first, first + num_rows, 2 * dim, self.seed, step, block=_NOISE_ROWS)
        visual, text = drawn.to(view.v_nd.device).split(dim, dim=1)
        zero = torch.zeros_like(view.v_nd)
        return self.budget.ascend(zero, visual, view.v_nd, 1.0), self.budget.ascend(zero, text, view.t_nd, 1.0)


def adversary(config: AdversarialConfig, num_items: int, seed: int) -> Adversary | None:
    """None for the defences that perturb nothing: none and certified."""
    budget = Budget(config.epsilon, config.norm)
    if config.adversary in ("none", "certified"):
        return None
    if config.adversary == "noise":
        return Noise(budget, seed)
    modalities = {"visual_only": MODALITIES[:1], "text_only": MODALITIES[1:]}.get(config.adversary, MODALITIES)
    adv_align_weight = config.adv_align_weight if config.adversary == "uat_mc" else 0.0
    return Ascent(AscentRule(budget, config.steps, adv_align_weight, num_items, modalities))


def certified_bonus(config: AdversarialConfig, users_BK: torch.Tensor, dense: ContentModel) -> torch.Tensor:
    """What the budget can add to any item's score for each user of the batch, [B]; differentiable."""
    budget = Budget(config.epsilon, config.norm)
    content_Bd = users_BK[:, -dense.w_v.shape[0] :]
    return worst_case_bonus(content_Bd, dense.w_v.float(), dense.w_t.float(), budget, budget)
