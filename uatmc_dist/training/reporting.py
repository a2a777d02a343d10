"""What training tells: metrics.jsonl and TensorBoard, the progress line, warnings."""

import time
from typing import Any

import torch

from uatmc_dist.errors import UserError
from uatmc_dist.logs import MetricsLog, TrainingProgress, peak_memory_bytes
from uatmc_dist.parallel.item_parallel import sum_over_ranks
from uatmc_dist.parallel.process_group import World
from uatmc_dist.parallel.traffic import TRAFFIC
from uatmc_dist.runs import RunFolder
from uatmc_dist.training.position import Position


class Reporter:
    """The first rank writes and prints; every rank takes part in the sums."""

    def __init__(self, run: RunFolder, world: World, every_steps: int, batch_size: int) -> None:
        self._run, self._world = run, world
        self._every_steps, self._batch_size = every_steps, batch_size
        self._log: MetricsLog | None = None
        self._progress: TrainingProgress | None = None
        self.problem: str | None = None
        """Why the logs cannot be written, once they cannot."""

    def open(self, step: int) -> None:
        """Once a run; raises UserError where the logs cannot be written."""
        if not self._world.is_first or self._log is not None:
            return
        try:
            self._log = MetricsLog(self._run.metrics, self._run.tensorboard, step)
        except OSError as error:
            raise UserError(f"{self._run.path}: the logs cannot be written ({error.strerror}); free space") from None

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def begin_phase(self, position: Position, total: int) -> None:
        if self._world.is_first:
            self._progress = TrainingProgress(position.phase, total, position.step_of_phase)
        self.start_clock(position.step)

    def end_phase(self) -> None:
        if self._progress is not None:
            self._progress.close()

    def start_clock(self, step: int) -> None:
        """What a line of the log says of a step begins here: evaluations are not steps."""
        self._since, self._since_step = time.monotonic(), step
        TRAFFIC.take()

    def logs_at(self, step: int) -> bool:
        return step % self._every_steps == 0

    def report(self, position: Position, terms: dict[str, torch.Tensor], lr: float) -> None:
        """Every few steps: the loss terms summed over ranks. The only place that waits for the device."""
        if not self.logs_at(position.step):
            return
        summed = sum_over_ranks(torch.stack([term.detach().double() for term in terms.values()])).tolist()
        if self._log is None or self._progress is None:
            return
        num_steps = max(position.step - self._since_step, 1)
        step_s = (time.monotonic() - self._since) / num_steps
        per_step = {name: total / num_steps for name, total in TRAFFIC.take().items()}
        self.start_clock(position.step)
        loss, pairs_per_s = sum(summed), self._batch_size / step_s
        self.write(
            position,
            {
                "loss": loss,
                **dict(zip(terms, summed, strict=True)),
                "lr": lr,
                "pairs_per_s": pairs_per_s,
                "step_s": step_s,
                "peak_memory_bytes": peak_memory_bytes(self._world.device),
                **per_step,
            },
        )
        self._progress.step(position.step_of_phase, f"loss {loss:.4f}  {pairs_per_s:,.0f} pairs/s")

    def write(self, position: Position, values: dict[str, float]) -> None:
        if self._log is None:
            return
        try:
            self._log.write({"step": position.step, "epoch": position.epoch, "phase": position.phase, **values})
        except OSError as error:
            self.problem = f"{self._run.path}: the logs cannot be written ({error.strerror})"

    def summarise(self, options: dict[str, Any], metric: str) -> None:
        """At the end of a run: options that are not the defaults, and the best figures, to compare runs by."""
        if self._log is None:
            return
        try:
            self._log.summarise(options, f"valid/{metric}")
        except OSError as error:
            self.say(f"warning: {self._run.path}: TensorBoard's summary cannot be written ({error.strerror})")

    def tell_evaluation(self, position: Position, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress.step(position.step_of_phase, f"evaluating, {done:,} of {total:,} users")

    def say(self, message: str) -> None:
        if not self._world.is_first:
            return
        if self._progress is None:
            print(message, flush=True)
        else:
            self._progress.say(message)
