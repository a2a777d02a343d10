"""Where a run stands."""

from dataclasses import dataclass, replace

from uatmc_dist.config import PhaseName


@dataclass(frozen=True)
class Position:
    """With the configuration it says which pair comes next."""

    phase: PhaseName
    step: int = 0
    """Batches taken in the whole run."""
    phase_start: int = 0
    """Step at which the phase began."""
    epoch: int = 0
    """Epoch of the phase, from 0."""
    batch: int = 0
    """Next batch of the epoch."""
    evaluation_due: bool = False
    """Whether the evaluation at the end of the last epoch has yet to be done."""
    best_metric: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0

    @property
    def step_of_phase(self) -> int:
        return self.step - self.phase_start

    def after_batch(self, batches_per_epoch: int, every_epochs: int) -> "Position":
        """One batch on. `every_epochs`: epochs between two evaluations."""
        position = replace(self, step=self.step + 1, batch=self.batch + 1)
        if position.batch == batches_per_epoch:
            epoch = position.epoch + 1
            position = replace(position, epoch=epoch, batch=0, evaluation_due=epoch % every_epochs == 0)
        return position

    def after_evaluation(self, value: float) -> "Position":
        """The evaluation that was due gave `value` of the metric of early stopping."""
        done = replace(self, evaluation_due=False)
        if self.best_metric is None or value > self.best_metric:
            return replace(done, best_metric=value, best_step=self.step, bad_evaluations=0)
        return replace(done, bad_evaluations=self.bad_evaluations + 1)
