"""What rank 0 tells while training: metrics.jsonl, TensorBoard, and a progress line with pairs/s and ETA."""

import contextlib
import json
import resource
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uatmc_dist.progress import PlainProgress


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard. What lies beyond the step that the run goes on from is dropped,
    so that an interrupted run leaves the same lines as an undisturbed one."""

    def __init__(self, metrics: Path, tensorboard: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed on one rank only

        if metrics.exists():
            kept = [line for line in metrics.read_text(encoding="utf-8").splitlines() if _step(line) <= first_step]
            metrics.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._path = metrics
        self._file = metrics.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(tensorboard), purge_step=first_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{line['phase']}/{name}", value, line["step"])

    def summarise(self, options: dict[str, Any], metric: str) -> None:
        """For TensorBoard's HParams: the options, and the figures of the best evaluation of the last phase."""
        lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        evaluations = [line for line in lines if metric in line]
        if not evaluations:
            return
        last_phase = evaluations[-1]["phase"]
        best = max((line for line in evaluations if line["phase"] == last_phase), key=lambda line: line[metric])
        figures = {f"best/{name}": value for name, value in best.items() if "/" in name}
        self._board.add_hparams(flattened(options), figures, run_name=".", global_step=best["step"])

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which a write has reported by now
            self._file.close()
            self._board.close()


def flattened(options: dict[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """section.option -> value; lists and missing ones as text, which is what HParams can hold."""
    flat: dict[str, bool | float | str] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the last line of a killed run may be cut
        return float("inf")


class TrainingProgress:
    """A bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, phase: str, total_steps: int, first_step: int) -> None:
        self._total = total_steps
        self._console = Console()
        self._line = PlainProgress(f"{phase}: step", first_step)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(phase, total=total_steps, completed=first_step, status="")
            self._bar.start()

    def step(self, done: int, status: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=status)
        else:
            self._line.tell(done, self._total, status)

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def peak_memory_bytes(device: torch.device) -> int:
    """Of the device where it is a GPU, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
