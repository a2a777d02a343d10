"""J(delta) and its ascent step: untargeted, on every item, coordinated over modalities (docs/algorithm.md, section 4).

    J(delta) = L(delta) + lambda mean_j cos_j

cos_j is that of the gradients dL/ddelta^v_j and dL/ddelta^t_j (coordination in item space, as published), or that of
the shifts which delta^v_j and delta^t_j make in the users' scores of j (coordination in user space, section 4.3).

`closed_form` is for linear fusion and needs no graph; `general_form` differentiates twice and serves any
map from (v, t) to the loss. Both run on any number of ranks: losses are partial, rows are this rank's.

    n  active items of this rank    N  items of the catalog    d  width of a projected row    C  columns of content
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from uatmc_dist.adversary.budget import Ball, Budget, Deltas, keep_modalities
from uatmc_dist.adversary.user_space import to_scale
from uatmc_dist.data.batches import Batch
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.models.objectives import Objective, user_moments
from uatmc_dist.models.projectors import fused_items
from uatmc_dist.parallel.item_parallel import ActiveRows
from uatmc_kernels import coordinate, perturb


@dataclass(frozen=True)
class AscentRule:
    """How far and along what the adversary climbs."""

    budget: Budget
    num_steps: int
    adv_align_weight: float
    """Lambda; 0 leaves coordination out (UAT)."""
    num_items: int
    """N, the divisor of the mean cosine."""
    modalities: tuple[str, ...] = MODALITIES
    """The modalities that the adversary may perturb."""
    space: Literal["items", "users"] = "items"
    """Where the modalities are coordinated."""
    conditional_gradient: bool = False
    """Each step goes to the point of the ball that the gradient at the last point points to (section 4.4): where L is
    convex in delta, no step lowers it."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Epsilon of the visual rows and of the textual ones, as shares of the budget's."""

    @property
    def budgets(self) -> tuple[Budget, Budget]:
        """Of the visual rows and of the textual ones."""
        visual, text = (self.budget.scaled(weight) for weight in self.weights)
        return visual, text

    def ascend(
        self, deltas: Deltas, gradients: Iterable[torch.Tensor], rows: Iterable[torch.Tensor], step: float
    ) -> Deltas:
        """One step of both modalities."""
        visual, text = (
            budget.ascend(delta, gradient, row, step)
            for budget, delta, gradient, row in zip(self.budgets, deltas, gradients, rows, strict=True)
        )
        return visual, text

    @property
    def step(self) -> float:
        """Length of one step, in radii: a single step reaches the surface, several overlap by a quarter."""
        return min(1.0, 1.25 / self.num_steps)


@dataclass(frozen=True)
class LinearView:
    """What the adversary sees of the model at one step: detached tensors and the objective."""

    objective: Objective
    batch: Batch
    rows: ActiveRows
    users_BK: torch.Tensor
    identity_nd: torch.Tensor
    v_nd: torch.Tensor
    t_nd: torch.Tensor
    w_v: torch.Tensor
    w_t: torch.Tensor
    bias: torch.Tensor

    def items(self, delta_v: torch.Tensor | float = 0.0, delta_t: torch.Tensor | float = 0.0) -> torch.Tensor:
        v_nd, t_nd = self.v_nd + delta_v, self.t_nd + delta_t
        return fused_items(self.identity_nd, v_nd, t_nd, self.w_v, self.w_t, self.bias)

    def content_gradient(self, items_nK: torch.Tensor) -> torch.Tensor:
        """g = dL/dc, complete on this rank; no parameter is touched."""
        leaf = items_nK.detach().requires_grad_()
        loss = self.objective.loss(self.users_BK, leaf, self.batch, self.rows)
        return torch.autograd.grad(loss, leaf)[0][:, self.identity_nd.shape[1] :]

    def content_hvp(self, items_nK: torch.Tensor, tangent_nd: torch.Tensor) -> torch.Tensor:
        return self.objective.content_hvp(self.users_BK, items_nK, self.batch, self.rows, tangent_nd)

    def user_alignment(
        self, items_nK: torch.Tensor, delta_v: torch.Tensor, delta_t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(cos_j [n], dcos_j/ddelta^v_j [n, d], dcos_j/ddelta^t_j): the cosine over users of the score shifts
        <h_b, W_v delta^v_j> and <h_b, W_t delta^t_j>, weighted by |dL/ds_bj|, which counts as a constant. Zero where
        a shift is. Complete on this rank."""
        shift_v, shift_t = delta_v @ self.w_v.T, delta_t @ self.w_t.T
        weights = self.objective.score_weights(self.users_BK, items_nK, self.batch, self.rows)
        moment_v, moment_t = user_moments(weights, self.users_BK, (shift_v, shift_t))
        square_v, square_t = (shift_v * moment_v).sum(1, keepdim=True), (shift_t * moment_t).sum(1, keepdim=True)
        product = (square_v * square_t).clamp(min=0).sqrt()
        kept = product > 0
        inverse = torch.where(kept, 1 / product, 0.0)
        cosine = (shift_v * moment_t).sum(1, keepdim=True) * inverse
        slope_v = moment_t * inverse - torch.where(kept, cosine / square_v, 0.0) * moment_v
        slope_t = moment_v * inverse - torch.where(kept, cosine / square_t, 0.0) * moment_t
        return cosine.squeeze(1), slope_v @ self.w_v, slope_t @ self.w_t


def closed_form(
    view: LinearView, rule: AscentRule, clean_items_nK: torch.Tensor, clean_gradient_nd: torch.Tensor
) -> Deltas:
    """delta* by section 4.1: the gradient g is replaced by g + lambda HVP(omega).

    The clean items and `clean_gradient_nd`, g at delta = 0, are by-products of the clean pass.
    """
    gradient_nd, items_nK = clean_gradient_nd.contiguous(), clean_items_nK.detach()
    deltas: Deltas | None = None
    for _ in range(rule.num_steps):
        if deltas is not None:
            items_nK = view.items(*deltas)
            gradient_nd = view.content_gradient(items_nK).contiguous()
        if deltas is not None and rule.space == "users":
            deltas = _ascend_in_user_space(view, rule, items_nK, gradient_nd, deltas)
        else:
            direction_nd = _coordinated(view, rule, items_nK, gradient_nd)
            deltas = _ascend(view, rule, direction_nd, deltas)
        deltas = keep_modalities(deltas, rule.modalities)
    assert deltas is not None
    return deltas


def _ascend(view: LinearView, rule: AscentRule, direction_nd: torch.Tensor, deltas: Deltas | None) -> Deltas:
    budget, step = rule.budget, 1.0 if rule.conditional_gradient else rule.step
    from_clean = deltas is None or rule.conditional_gradient
    if from_clean and isinstance(budget, Ball):
        radius, (visual, text) = step * budget.epsilon, rule.weights
        delta_v, delta_t = perturb(direction_nd, view.w_v, view.w_t, view.v_nd, view.t_nd, radius, norm=budget.norm)
        return (delta_v, delta_t) if visual == text == 1.0 else (visual * delta_v, text * delta_t)
    if deltas is None or from_clean:
        deltas = torch.zeros_like(view.v_nd), torch.zeros_like(view.t_nd)
    return rule.ascend(deltas, (direction_nd @ view.w_v, direction_nd @ view.w_t), (view.v_nd, view.t_nd), step)


def _coordinated(view: LinearView, rule: AscentRule, items_nK: torch.Tensor, gradient_nd: torch.Tensor) -> torch.Tensor:
    if rule.adv_align_weight == 0 or rule.space == "users":
        return gradient_nd
    _, omega_nd = coordinate(gradient_nd, view.w_v, view.w_t)
    omega_nd *= len(omega_nd) / rule.num_items  # the mean is over the catalog, not over the rows that are here
    return torch.add(gradient_nd, view.content_hvp(items_nK, omega_nd), alpha=rule.adv_align_weight)


def _ascend_in_user_space(
    view: LinearView, rule: AscentRule, items_nK: torch.Tensor, gradient_nd: torch.Tensor, deltas: Deltas
) -> Deltas:
    """One step along dJ/ddelta; at delta = 0, where no score has shifted, there is nothing to coordinate."""
    _, slope_v, slope_t = view.user_alignment(items_nK, *deltas)
    weight = rule.adv_align_weight / rule.num_items
    slopes = gradient_nd @ view.w_v + weight * slope_v, gradient_nd @ view.w_t + weight * slope_t
    return rule.ascend(deltas, slopes, (view.v_nd, view.t_nd), rule.step)


def general_form(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    v_nd: torch.Tensor,
    t_nd: torch.Tensor,
    rule: AscentRule,
    clean_loss: torch.Tensor | None = None,
    user_alignment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Deltas:
    """delta* by automatic double differentiation (section 4.2), for any `loss(v, t)` that is twice differentiable.

    `loss` is this rank's partial; `v_nd`, `t_nd` are this rank's rows. No parameter's gradient is touched. Where
    v and t are leaves of a graph that exists, `clean_loss` at its end saves the first pass forward.
    `user_alignment(v, t)` is this rank's sum of cosines for coordination in user space.
    """
    deltas = torch.zeros_like(v_nd), torch.zeros_like(t_nd)
    for index in range(rule.num_steps):
        kept = clean_loss is not None
        if clean_loss is not None:
            leaves, objective, clean_loss = [v_nd, t_nd], clean_loss, None
        else:
            leaves = [rows.detach() + delta for rows, delta in zip((v_nd, t_nd), deltas, strict=True)]
            objective = loss(*(leaf.requires_grad_() for leaf in leaves))
        if rule.space == "users" and index > 0:
            assert user_alignment is not None
            objective = objective + rule.adv_align_weight / rule.num_items * user_alignment(*leaves)
        gradients = _slope(objective, leaves, rule, kept)
        if rule.conditional_gradient:
            deltas = torch.zeros_like(v_nd), torch.zeros_like(t_nd)
        step = 1.0 if rule.conditional_gradient else rule.step
        slopes, rows = ((tensor.detach() for tensor in pair) for pair in (gradients, (v_nd, t_nd)))
        deltas = rule.ascend(deltas, slopes, rows, step)
        deltas = keep_modalities(deltas, rule.modalities)
    return deltas


def _slope(
    objective: torch.Tensor, leaves: list[torch.Tensor], rule: AscentRule, kept: bool
) -> tuple[torch.Tensor, ...]:
    """Of J. `kept`: whether somebody else still needs the graph of `objective`."""
    if rule.adv_align_weight == 0 or rule.space == "users":
        return _gradients(objective, leaves, retain_graph=kept)
    gradients = _gradients(objective, leaves, create_graph=True)
    alignment = sum_of_cosines(*gradients) / rule.num_items
    turned = _gradients(alignment, leaves, retain_graph=kept)
    return tuple(g.detach() + rule.adv_align_weight * along for g, along in zip(gradients, turned, strict=True))


def sum_of_cosines(visual_nd: torch.Tensor, text_nd: torch.Tensor) -> torch.Tensor:
    """Rows whose gradient is nearly nothing have no direction and are left out."""
    visual_nd, text_nd = to_scale(visual_nd, 1), to_scale(text_nd, 1)
    kept_n1 = ((visual_nd != 0).any(dim=1) & (text_nd != 0).any(dim=1))[:, None]
    visual_nd, text_nd = (torch.where(kept_n1, rows_nd, 1.0) for rows_nd in (visual_nd, text_nd))
    cosine_n = torch.nn.functional.cosine_similarity(visual_nd, text_nd, dim=1, eps=0.0)
    return torch.where(kept_n1.squeeze(1), cosine_n, 0.0).sum()


def _gradients(of: torch.Tensor, leaves: list[torch.Tensor], **graph: bool) -> tuple[torch.Tensor, ...]:
    """Zeros for a modality that the catalog lacks."""
    return torch.autograd.grad(of, leaves, allow_unused=True, materialize_grads=True, **graph)
