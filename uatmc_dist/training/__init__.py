"""Training: two phases, any number of ranks, exact resumption."""

from uatmc_dist.training.loop import Trainer
from uatmc_dist.training.position import Position
from uatmc_dist.training.stopping import Interrupted

__all__ = ["Interrupted", "Position", "Trainer"]
