"""What every attack shares: the targets it may move, and what a perturbation does to their scores.

The attack happens at inference time: the model is fixed, only the projected features of the target items
move, and each target is attacked for itself (docs/algorithm.md, section 6).

    T  target items attacked together    A  anchor users    d  width of a projected row    K  2d
    a  anchors of this rank, all of them where there is one
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch

from uatmc_dist.adversary.budget import Budget, Deltas, worst_case_bonus
from uatmc_dist.attacks.anchors import Anchors
from uatmc_dist.attacks.losses import Loss
from uatmc_dist.models.projectors import fused_items

_OF_TARGETS = ("identity_Td", "v_Td", "t_Td")


class Evaluation(NamedTuple):
    """A loss at one perturbation of each target, as means over the anchors."""

    value_T: torch.Tensor
    hits_T: torch.Tensor
    """Share of anchors above their threshold; one exactly at it counts half."""
    pull_Td: torch.Tensor
    """Gradient in the content rows c_j; `in_rows` has what it is in the projected rows."""


@dataclass(frozen=True)
class Targets:
    """A batch of target items under one attack; float32. Several ranks share out the anchors, and all have the targets:
    every method but `alone` and what asks no anchor is collective then."""

    anchors: Anchors
    users_aK: torch.Tensor
    """Anchor users."""
    thresholds_a: torch.Tensor
    """Each anchor's k-th best score of the clean catalog, nothing masked."""
    identity_Td: torch.Tensor
    v_Td: torch.Tensor
    t_Td: torch.Tensor
    w_v: torch.Tensor
    w_t: torch.Tensor
    bias: torch.Tensor
    surrogate: "Targets | None" = None
    """The same targets and anchors as another, undefended model sees them."""

    def __len__(self) -> int:
        return len(self.identity_Td)

    @property
    def content_ad(self) -> torch.Tensor:
        """The content halves h of the anchors."""
        return self.users_aK[:, self.identity_Td.shape[1] :]

    def items(self, delta_v: torch.Tensor | float = 0.0, delta_t: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Embeddings [T, K] of the perturbed targets. Perturbed rows are not normalised again."""
        v_Td, t_Td = self.v_Td + delta_v, self.t_Td + delta_t
        return fused_items(self.identity_Td, v_Td, t_Td, self.w_v, self.w_t, self.bias)

    def zeros(self) -> Deltas:
        return torch.zeros_like(self.v_Td), torch.zeros_like(self.t_Td)

    def chosen(self, index: torch.Tensor) -> "Targets":
        """Some of the targets, without the surrogate."""
        index = index.to(self.v_Td.device)
        return replace(self, surrogate=None, **{name: getattr(self, name)[index] for name in _OF_TARGETS})

    def alone(self, anchor: int) -> "Targets":
        """With a single anchor, without the surrogate."""
        rows = torch.cat([self.users_aK, self.thresholds_a[:, None]], dim=1)
        row = self.anchors.rows_of(rows, torch.tensor([anchor]))
        return replace(self, anchors=Anchors(1), users_aK=row[:, :-1], thresholds_a=row[:, -1], surrogate=None)

    def repeated(self, times: int) -> "Targets":
        """Every target so many times, one whole round after the other: several starts of one attack at once."""
        return replace(self, **{name: getattr(self, name).repeat(times, 1) for name in _OF_TARGETS})

    def excess(self, deltas: Deltas) -> Iterator[tuple[slice, torch.Tensor]]:
        """Scores above the thresholds, for one slice of this rank's anchors after the other: never whole."""
        items_TK = self.items(*deltas)
        for piece in self.anchors.pieces():
            yield piece, torch.addmm(-self.thresholds_a[piece, None], self.users_aK[piece], items_TK.T)

    def hits(self, deltas: Deltas) -> torch.Tensor:
        """Share of anchors above their threshold, [T]; float32, so good for comparing attacks, not for reporting."""
        counts_T = self.v_Td.new_zeros(len(self), dtype=torch.int64)
        for _, excess_aT in self.excess(deltas):
            counts_T += (excess_aT > 0).sum(0)
        return self.anchors.total(counts_T) / self.anchors.count

    def evaluate(self, deltas: Deltas, loss: Loss) -> Evaluation:
        """The loss to be raised, its gradient, and what it stands for."""
        content_ad, dim = self.content_ad, self.content_ad.shape[1]
        # In float64: the order in which ranks are added up must not be seen in float32.
        total_TC = content_ad.new_zeros(len(self), dim + 2, dtype=torch.float64)
        for piece, excess_aT in self.excess(deltas):
            value_aT, slope_aT = loss.value_and_slope(excess_aT)
            total_TC[:, :dim] += slope_aT.T @ content_ad[piece]
            total_TC[:, dim] += value_aT.sum(0)
            total_TC[:, dim + 1] += 0.5 * (1 + excess_aT.sign_()).sum(0)  # faster than counting booleans
        mean_TC = self.anchors.mean(total_TC).to(content_ad.dtype)
        return Evaluation(mean_TC[:, dim], mean_TC[:, dim + 1], mean_TC[:, :dim])

    def in_rows(self, pull_Td: torch.Tensor) -> Deltas:
        """The gradient in the projected rows v and t, [T, d] each."""
        return pull_Td @ self.w_v, pull_Td @ self.w_t

    def ascend(self, deltas: Deltas, pull_Td: torch.Tensor, budget: Budget, step: float | torch.Tensor) -> Deltas:
        """One step of so many radii ([T, 1] or one for all) along the gradient, in both modalities."""
        visual_Td, text_Td = self.in_rows(pull_Td)
        return (
            budget.ascend(deltas[0], visual_Td, self.v_Td, step),
            budget.ascend(deltas[1], text_Td, self.t_Td, step),
        )

    def random_deltas(self, budget: Budget, generator: torch.Generator) -> Deltas:
        """Full-length perturbations in random directions."""
        drawn = torch.randn(2, *self.v_Td.shape, generator=generator)  # on the CPU: the same wherever the targets are
        visual, text = drawn.to(self.v_Td.device).unbind(0)
        zero = torch.zeros_like(self.v_Td)
        return budget.ascend(zero, visual, self.v_Td, 1.0), budget.ascend(zero, text, self.t_Td, 1.0)

    def project(self, deltas: Deltas, budget: Budget) -> Deltas:
        return budget.project(deltas[0], self.v_Td), budget.project(deltas[1], self.t_Td)

    def reach(self, budget: Budget) -> torch.Tensor:
        """The most that the budget can add to each anchor's score of a target with unit rows, [A]; where rows are
        replaced, of one without content."""
        return self.anchors.gathered(worst_case_bonus(self.content_ad, self.w_v, self.w_t, budget, budget))

    def best_mean_direction(self, budget: Budget) -> Deltas:
        """The best single direction for the mean margin, which is linear in the perturbation: the maximum over the ball
        lies along the mean of the anchors."""
        mean_d = self.anchors.mean(self.content_ad.double().sum(0)).to(self.v_Td.dtype)
        return self.ascend(self.zeros(), mean_d.expand(len(self), -1), budget, 1.0)

    def typical_reach(self, budget: Budget) -> float:
        """The median reach: the scale on which losses without a scale of their own look at scores."""
        return max(float(self.reach(budget).median()), torch.finfo(torch.float32).tiny)


Knowledge = Literal["white box", "score queries", "surrogate"]


class Attack(Protocol):
    """Proposes perturbations (delta_v, delta_t), [T, d] each, within the budget.

    An attack may propose several; the attacker keeps, for each target, the one with which most anchors are won.
    """

    @property
    def name(self) -> str: ...

    @property
    def knowledge(self) -> Knowledge: ...

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]: ...


def best_of(targets: Targets, candidates: Iterable[Deltas]) -> Deltas:
    """For each target the candidate with which most anchors are above their threshold; the first of equals."""
    proposed = list(candidates)
    return best_by(proposed, torch.stack([targets.hits(deltas) for deltas in proposed]))


def best_by(candidates: Sequence[Deltas], hits_CT: torch.Tensor) -> Deltas:
    """For each target the candidate with most hits; the first of equals."""
    best, most_T = candidates[0], hits_CT[0]
    for deltas, hits_T in zip(candidates[1:], hits_CT[1:], strict=True):
        best = pick(hits_T > most_T, deltas, best)
        most_T = torch.maximum(hits_T, most_T)
    return best


def pick(where_T: torch.Tensor, these: Deltas, those: Deltas) -> Deltas:
    """`these` for the targets marked, `those` for the others."""
    return torch.where(where_T[:, None], these[0], those[0]), torch.where(where_T[:, None], these[1], those[1])
