"""APGD: Auto-PGD, whose steps choose their own length (Croce and Hein, arXiv 2003.01690, algorithm 1).

Two losses without a dead zone, several starts each: zero, the best single direction for the mean margin, random ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import Budget, Deltas, keep_modalities
from uatmc_dist.attacks.base import Knowledge, Targets, pick
from uatmc_dist.attacks.losses import LogHinge, Loss, SoftRank
from uatmc_dist.data.catalog import MODALITIES

_MOMENTUM, _ENOUGH_SUCCESSES = 0.75, 0.75
SOFTNESS = 0.1
"""Temperature and scale of the losses, in typical reaches of the budget."""


@dataclass(frozen=True)
class APGD:
    steps: int
    restarts: int
    modalities: tuple[str, ...] = MODALITIES
    name: str = "apgd"
    knowledge: Knowledge = "white box"

    def __call__(self, targets: Targets, budget: Budget, generator: torch.Generator) -> Iterable[Deltas]:
        """One candidate for each loss and start, in the order of the starts."""
        reach = targets.typical_reach(budget)
        starts = [targets.zeros(), targets.best_mean_direction(budget)][: self.restarts]
        starts += [targets.random_deltas(budget, generator) for _ in range(self.restarts - len(starts))]
        start = torch.cat([v for v, _ in starts]), torch.cat([t for _, t in starts])
        start = keep_modalities(start, self.modalities)
        losses: tuple[Loss, ...] = (SoftRank(SOFTNESS * reach), LogHinge(SOFTNESS * reach))
        found = [self._climb(targets.repeated(self.restarts), budget, loss, start) for loss in losses]
        for index in range(self.restarts):
            rows = slice(index * len(targets), (index + 1) * len(targets))
            yield from ((visual[rows], text[rows]) for visual, text in found)

    def _climb(self, targets: Targets, budget: Budget, loss: Loss, start: Deltas) -> Deltas:
        """The point with the most hits on the way. All targets at once, each with a step length of its own."""
        now = previous = start
        seen = targets.evaluate(now, loss)
        best_value_T, best_pull_Td, best = seen.value_T, seen.pull_Td, now
        most_hits_T, most = seen.hits_T, now
        step_T1 = torch.full_like(best_value_T, 2.0)[:, None]
        halved_T = torch.zeros_like(best_value_T, dtype=torch.bool)
        successes_T = torch.zeros_like(best_value_T)
        value_at_checkpoint_T = best_value_T
        pull_Td, value_T = seen.pull_Td, seen.value_T
        checkpoints, last = _checkpoints(self.steps), 0
        for index in range(self.steps):
            ahead = keep_modalities(targets.ascend(now, pull_Td, budget, step_T1), self.modalities)
            share = _MOMENTUM if index else 1.0
            now, previous = (
                targets.project(
                    (_mixed(ahead[0], now[0], previous[0], share), _mixed(ahead[1], now[1], previous[1], share)), budget
                ),
                now,
            )
            seen = targets.evaluate(now, loss)
            successes_T += seen.value_T > value_T
            pull_Td, value_T = seen.pull_Td, seen.value_T
            better_T = value_T > best_value_T
            best_value_T = torch.where(better_T, value_T, best_value_T)
            best_pull_Td = torch.where(better_T[:, None], pull_Td, best_pull_Td)
            best = pick(better_T, now, best)
            more_T = seen.hits_T > most_hits_T
            most_hits_T, most = torch.where(more_T, seen.hits_T, most_hits_T), pick(more_T, now, most)
            if index + 1 in checkpoints:
                few_T = successes_T < _ENOUGH_SUCCESSES * (index + 1 - last)
                stuck_T = ~halved_T & (best_value_T <= value_at_checkpoint_T)
                halved_T = few_T | stuck_T
                step_T1 = torch.where(halved_T[:, None], step_T1 / 2, step_T1)
                now, previous = pick(halved_T, best, now), pick(halved_T, best, previous)
                pull_Td = torch.where(halved_T[:, None], best_pull_Td, pull_Td)
                value_T = torch.where(halved_T, best_value_T, value_T)
                value_at_checkpoint_T, last = best_value_T, index + 1
                successes_T = torch.zeros_like(successes_T)
        return most


def _mixed(ahead: torch.Tensor, now: torch.Tensor, previous: torch.Tensor, share: float) -> torch.Tensor:
    return now + share * (ahead - now) + (1 - share) * (now - previous)


def _checkpoints(steps: int) -> set[int]:
    """Steps after which the length is looked at: at 22 % first, then closer and closer."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {-int(-share * steps // 1) for share in shares[1:]}
