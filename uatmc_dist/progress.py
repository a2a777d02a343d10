"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, both with the time that is left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress

_EVERY_SECONDS = 10.0
_KEPT_WITHIN_S = 1.0
"""What is told so soon after the start was kept from an earlier one, or took no time: it says nothing of the rest."""


class PlainProgress:
    """A line now and then, with the time that is left."""

    def __init__(self, unit: str, first: int = 0) -> None:
        self._unit, self._first = unit, first
        self._started = self._begun = self._told = time.monotonic()

    def tell(self, done: int, total: int, status: str = "") -> None:
        """`done` counts from 0 and includes the `first` that an earlier run did."""
        now = time.monotonic()
        if now - self._started < _KEPT_WITHIN_S:
            self._first, self._begun = done, now
        if now - self._told < _EVERY_SECONDS:
            return
        self._told = now
        left = (now - self._begun) / max(done - self._first, 1) * (total - done)
        print(f"{self._unit} {done}/{total}  {status}  ETA {timedelta(seconds=round(left))}", flush=True)


@contextmanager
def shown(unit: str, by_this_rank: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Gives the callback (done, total) that shows the progress, where this rank is the one to show it."""
    console = Console()
    if not by_this_rank:
        yield lambda done, total: None
    elif not console.is_terminal:
        line = PlainProgress(unit)
        yield lambda done, total: line.tell(done, total)
    else:
        bar = Progress(console=console, transient=True)
        task = bar.add_task(unit, total=None)

        def tell(done: int, total: int) -> None:
            bar.start()  # not before there is something to tell
            bar.update(task, completed=done, total=total)

        try:
            yield tell
        finally:
            bar.stop()
