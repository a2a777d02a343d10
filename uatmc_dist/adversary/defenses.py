"""What the trainer defends with, by name.

A defence either perturbs the items of a second loss term (an `Adversary`) or raises the scores of the negatives by
the worst that any perturbation could do (`certified_loss`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from uatmc_dist.adversary.budget import AnyContent, Ball, Budget, Deltas, worst_case_bonus
from uatmc_dist.adversary.coordination import AscentRule, LinearView, closed_form, general_form
from uatmc_dist.adversary.user_space import sum_of_user_cosines
from uatmc_dist.config import AdversarialConfig
from uatmc_dist.data.batches import Batch
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.models.backbone import LinearContent, Scored, View
from uatmc_dist.models.objectives import Objective
from uatmc_dist.parallel.item_parallel import ActiveRows, scores_at, sum_over_ranks
from uatmc_dist.seeding import normal_rows

_NOISE_ROWS = 4096


@dataclass(frozen=True)
class Problem:
    """One batch that an adversary makes harder."""

    objective: Objective
    batch: Batch
    rows: ActiveRows
    view: View

    def loss(self, scored: Scored, handicap_B: torch.Tensor | None = None) -> torch.Tensor:
        """This rank's partial of the objective."""
        return self.objective.loss(scored.users_BK, scored.items_nK, self.batch, self.rows, handicap_B)

    def user_alignment(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> torch.Tensor:
        """This rank's sum over items of the cosine of what moving v alone and t alone does to the users' scores."""
        view, given = self.view, (self.batch, self.rows)
        weights = self.objective.score_weights(*view.at(v_nd.detach(), t_nd.detach()), *given)
        alone = view.at(v_nd, view.t_nd.detach()), view.at(view.v_nd.detach(), t_nd)
        return sum_of_user_cosines(view.clean, *alone, weights)


class Adversary(Protocol):
    @property
    def weight(self) -> float:
        """Of the loss on perturbed items."""
        ...

    def __call__(self, problem: Problem, clean_loss: torch.Tensor, step: int) -> Deltas:
        """Perturbations of the rows that the view lets move, at one step of the run. `clean_loss` is the problem's
        loss at delta = 0, with its graph."""
        ...


@dataclass(frozen=True)
class Ascent:
    """Climbs the loss: all adversaries but noise."""

    rule: AscentRule
    weight: float

    def __call__(self, problem: Problem, clean_loss: torch.Tensor, step: int) -> Deltas:
        view = problem.view
        if view.linear is None:
            loss = lambda v, t: problem.loss(view.at(v, t))  # noqa: E731
            return general_form(loss, view.v_nd, view.t_nd, self.rule, clean_loss, problem.user_alignment)
        (clean_gradient_nC,) = torch.autograd.grad(clean_loss, view.linear.content_nC, retain_graph=True)
        linear = _linear_view(problem, view.linear)
        return closed_form(linear, self.rule, view.clean.items_nK, clean_gradient_nC)


def _linear_view(problem: Problem, linear: LinearContent) -> LinearView:
    view = problem.view
    dtype = view.v_nd.dtype  # the fusion may train in bfloat16
    fusion = (weight.detach().to(dtype) for weight in (linear.w_v, linear.w_t, linear.bias))
    rows = view.clean.users_BK.detach(), linear.identity_nd.detach(), view.v_nd, view.t_nd
    return LinearView(problem.objective, problem.batch, problem.rows, *rows, *fusion)


@dataclass(frozen=True)
class Noise:
    """A random direction of full length for each row and step, the same on any number of ranks."""

    budgets: tuple[Budget, Budget]
    seed: int
    weight: float

    def __call__(self, problem: Problem, clean_loss: torch.Tensor, step: int) -> Deltas:
        v_nd, t_nd = problem.view.v_nd, problem.view.t_nd
        first, widths = problem.view.content_rows.first, [v_nd.shape[1], t_nd.shape[1]]
        last = first + len(v_nd)
        drawn = normal_rows(first, last, sum(widths), self.seed, step, block=_NOISE_ROWS, device=v_nd.device)
        visual, text = (
            budget.ascend(torch.zeros_like(rows), direction, rows, 1.0)
            for budget, rows, direction in zip(self.budgets, (v_nd, t_nd), drawn.split(widths, dim=1), strict=True)
        )
        return visual, text


def adversary(config: AdversarialConfig, num_items: int, seed: int) -> Adversary | None:
    """None for the defences that perturb nothing: none and certified."""
    budget, weights, name = budget_of(config), weights_of(config), config.adversary
    if name in ("none", "certified"):
        return None
    if name == "noise":
        return Noise((budget.scaled(weights[0]), budget.scaled(weights[1])), seed, config.adv_weight)
    if name == "amr":
        published = AscentRule(Ball(config.amr_epsilon, "l2"), 1, 0.0, num_items, MODALITIES[:1])
        return Ascent(published, config.amr_weight)
    modalities = {"visual_only": MODALITIES[:1], "text_only": MODALITIES[1:]}.get(name, MODALITIES)
    is_coordinated = name in ("uat_mc", "user_coordination")
    rule = AscentRule(
        budget,
        config.steps,
        config.adv_align_weight if is_coordinated else 0.0,
        num_items,
        modalities,
        "users" if name == "user_coordination" else "items",
        name == "conditional_gradient",
        weights,
    )
    return Ascent(rule, config.adv_weight)


def budget_of(config: AdversarialConfig) -> Budget:
    return AnyContent(config.epsilon) if config.budget == "any_content" else Ball(config.epsilon, config.norm)


def weights_of(config: AdversarialConfig) -> tuple[float, float]:
    return config.visual_weight, config.text_weight


def certified_loss(config: AdversarialConfig, problem: Problem) -> torch.Tensor:
    """This rank's partial of the objective where every negative scores as high as the budget can bring it for the user.
    Collective."""
    view, (visual, text) = problem.view, (budget_of(config).scaled(weight) for weight in weights_of(config))
    linear, users_BK = view.linear, view.clean.users_BK
    assert linear is not None
    content_BC, dtype = users_BK[:, -linear.w_v.shape[0] :], users_BK.dtype
    bonus_B = worst_case_bonus(content_BC, linear.w_v.to(dtype), linear.w_t.to(dtype), visual, text)
    if not (isinstance(visual, AnyContent) and isinstance(text, AnyContent)):
        return problem.loss(view.clean, bonus_B)
    # The share of a negative's content that is replaced goes; that of the positive stays.
    leaving_nC = text.share * (linear.content_nC - linear.bias.to(dtype))
    if visual.share != text.share:
        leaving_nC = leaving_nC + (visual.share - text.share) * (view.v_nd.to(dtype) @ linear.w_v.to(dtype).T)
    places = problem.rows.places(problem.batch.positives_B, content_BC.device)
    own_B = sum_over_ranks(scores_at(content_BC, leaving_nC, places))
    left = Scored(users_BK, torch.cat([linear.identity_nd, linear.content_nC - leaving_nC], dim=1))
    return problem.loss(left, bonus_B - own_B)
