"""Learning-rate schedule of a phase."""

import math

from uatmc_dist.config import TrainingConfig


def learning_rate_factor(training: TrainingConfig, step: int, total: int) -> float:
    """What the learning rates are multiplied with at `step` (from 0) of `total`: linear warm-up, then the
    schedule from one to zero."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(total - training.warmup_steps, 1)
    if training.lr_schedule == "linear":
        return 1.0 - progress
    if training.lr_schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
