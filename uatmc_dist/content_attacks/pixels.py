"""Promotion by small changes of a photo's pixels, through the differentiable chain from pixels to scores.

Ours climbs towards the best row that any photo could have (`AnyContent`). INSA and EXPA are those of the literature on
adversarial item promotion (arXiv 2006.01888), within the same budgets.

    d  width of a projected row    A  anchors
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from uatmc_dist.adversary.budget import AnyContent
from uatmc_dist.attacks.apgd import APGD, SOFTNESS
from uatmc_dist.attacks.base import Targets, best_of
from uatmc_dist.attacks.losses import LogHinge, SoftRank
from uatmc_dist.config import PixelLoss
from uatmc_dist.content_attacks.photos import PhotoRows
from uatmc_dist.seeding import generator

_MOMENTUM = 0.75
_FIRST_STEP, _LAST_STEP = 0.5, 0.05
"""In radii."""
_APGD_STEPS = 15


@dataclass(frozen=True)
class PixelBall:
    """Changes of one photo; `size` from 0 to 255: of every number (linf), or the root of their mean square (l2)."""

    size: float
    norm: str

    def project(self, delta_3hw: torch.Tensor, photo_3hw: torch.Tensor) -> torch.Tensor:
        """Into the ball, and into what a pixel can be."""
        if self.norm == "linf":
            delta_3hw = delta_3hw.clamp(-self.size, self.size)
        else:
            length = delta_3hw.square().mean().sqrt()
            delta_3hw = delta_3hw * (self.size / length).clamp(max=1.0) if length > 0 else delta_3hw
        return (photo_3hw + delta_3hw).clamp(0, 255) - photo_3hw

    def random(self, photo_3hw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A change of full size in a random direction, drawn on the CPU."""
        drawn_3hw = torch.randn(photo_3hw.shape, generator=generator).to(photo_3hw.device)
        return self.project(self.size * self.direction(drawn_3hw), photo_3hw)

    def direction(self, gradient_3hw: torch.Tensor) -> torch.Tensor:
        """The step of size 1 that climbs most."""
        if self.norm == "linf":
            return gradient_3hw.sign()
        length = gradient_3hw.square().mean().sqrt()
        return gradient_3hw / length if length > 0 else gradient_3hw


class Outlook(NamedTuple):
    """What the attacker sees at one photo, and where it wants to go from there."""

    won: float
    """Share of the anchors."""
    by_features: torch.Tensor
    """Gradient of what is climbed in the features [width]."""
    by_row: torch.Tensor
    """And in the projected row [d]."""


class Objective(Protocol):
    def __call__(self, features: torch.Tensor, row_d: torch.Tensor) -> Outlook: ...


class BestRow:
    """Ours: towards the best row that any photo could have, of one target and its anchors. Following the anchors' own
    loss instead ends lower: it turns with every step, and the row follows late (docs/log.md)."""

    def __init__(self, target: Targets, best_row_d: torch.Tensor) -> None:
        self._target, self._best_row_d = target, best_row_d

    def __call__(self, features: torch.Tensor, row_d: torch.Tensor) -> Outlook:
        won = float(self._target.hits(_visual(self._target, row_d)))
        return Outlook(won, torch.zeros_like(features), self._best_row_d.to(row_d.device))


class OwnLoss:
    """A loss of the anchors' own scores, on the scale of what any photo and text can do to them."""

    def __init__(self, target: Targets, loss: type[LogHinge] | type[SoftRank]) -> None:
        self._target, self._loss = target, loss(SOFTNESS * target.typical_reach(AnyContent()))

    def __call__(self, features: torch.Tensor, row_d: torch.Tensor) -> Outlook:
        target, deltas = self._target, _visual(self._target, row_d)
        (towards,), _ = target.in_rows(target.evaluate(deltas, self._loss).pull_Td)
        return Outlook(float(target.hits(deltas)), torch.zeros_like(features), towards.to(row_d.device))


LOSSES: dict[PixelLoss, Callable[[Targets, torch.Tensor], Objective]] = {
    "best_row": BestRow,
    "log_hinge": lambda target, best_row_d: OwnLoss(target, LogHinge),
    "soft_rank": lambda target, best_row_d: OwnLoss(target, SoftRank),
}


class Insa:
    """INSA on VBPR: the sum over users of exp(score)."""

    def __init__(self, target: Targets) -> None:
        self._target = target

    def __call__(self, features: torch.Tensor, row_d: torch.Tensor) -> Outlook:
        target = self._target
        deltas = _visual(target, row_d)
        scores_A = (target.users_aK @ target.items(*deltas).T).squeeze(1)
        weights_A = torch.softmax(scores_A, dim=0)  # the gradient's direction does not depend on its length
        towards = (weights_A @ target.content_ad) @ target.w_v
        return Outlook(float(target.hits(deltas)), torch.zeros_like(features), towards.to(row_d.device))


class Expa:
    """EXPA: the features of a hook item's photo, without any user."""

    def __init__(self, target: Targets, hook: torch.Tensor) -> None:
        self._target, self._hook = target, hook

    def __call__(self, features: torch.Tensor, row_d: torch.Tensor) -> Outlook:
        won = float(self._target.hits(_visual(self._target, row_d)))
        return Outlook(won, 2 * (self._hook - features.detach()), torch.zeros_like(row_d))


def _visual(target: Targets, row_d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row_d = row_d.detach().to(target.v_Td.device, target.v_Td.dtype)
    return row_d - target.v_Td, torch.zeros_like(target.t_Td)


class Climb(NamedTuple):
    """One photo on its way."""

    photo_3hw: torch.Tensor
    objective: Objective
    start_3hw: torch.Tensor
    """Its change so far."""


class Climbed(NamedTuple):
    delta_3hw: torch.Tensor
    won: float
    """Share of the anchors."""


def climb(
    rows: PhotoRows,
    climbs: Sequence[Climb],
    ball: PixelBall,
    steps: int,
    before_step: Callable[[], None] = lambda: None,
) -> list[Climbed]:
    """For each photo the change with which most anchors were won on the way, the last of equals.

    With momentum (arXiv 1710.06081), steps from half the radius to a twentieth. All photos go through the encoder at
    once. `before_step` may raise.
    """
    photos = [one.photo_3hw for one in climbs]
    deltas = [ball.project(one.start_3hw, one.photo_3hw) for one in climbs]
    momenta = [torch.zeros_like(photo_3hw) for photo_3hw in photos]
    best, most = list(deltas), [-1.0] * len(climbs)
    for step in range(steps + 1):
        before_step()
        pixels = [(photo + delta).requires_grad_() for photo, delta in zip(photos, deltas, strict=True)]
        features_nD, rows_nd = rows.rows(pixels)
        seen = [
            one.objective(features.detach(), row_d.detach())
            for one, features, row_d in zip(climbs, features_nD, rows_nd, strict=True)
        ]
        for index, outlook in enumerate(seen):
            if outlook.won >= most[index]:
                best[index], most[index] = deltas[index], outlook.won
        if step == steps:
            break
        towards = torch.stack([one.by_features for one in seen]), torch.stack([one.by_row for one in seen])
        gradients = torch.autograd.grad((features_nD, rows_nd), pixels, towards)
        length = ball.size * (_FIRST_STEP + (_LAST_STEP - _FIRST_STEP) * step / max(steps - 1, 1))
        for index, gradient_3hw in enumerate(gradients):
            size = gradient_3hw.abs().mean()
            if size > 0:
                momenta[index] = _MOMENTUM * momenta[index] + gradient_3hw / size
            deltas[index] = ball.project(deltas[index] + length * ball.direction(momenta[index]), photos[index])
    return [Climbed(delta_3hw.detach(), won) for delta_3hw, won in zip(best, most, strict=True)]


def best_climb(
    rows: PhotoRows,
    tries: Sequence[Sequence[Climb]],
    ball: PixelBall,
    steps: int,
    before_step: Callable[[], None] = lambda: None,
) -> list[torch.Tensor]:
    """For each photo the change [3, h, w] of the try that won most anchors, the first of equals. Each of `tries` has
    all photos."""
    found = [climb(rows, climbs, ball, steps, before_step) for climbs in tries]
    return [max(of_photo, key=lambda climbed: climbed.won).delta_3hw for of_photo in zip(*found, strict=True)]


def best_rows(target: Targets, modalities: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best visual and textual rows [d] that any content of these modalities could have, as found by APGD."""
    best_v, best_t = best_of(target, APGD(_APGD_STEPS, 1, modalities)(target, AnyContent(), generator(0)))
    return (target.v_Td + best_v)[0], (target.t_Td + best_t)[0]
