"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, both with the time that is left."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress

_EVERY_SECONDS = 10.0
_WINDOW_S = 60.0
"""What was done before says little of the rest: some of it may have been kept from an earlier start."""
_AT_ONCE_S, _ONE_MARK_S = 0.1, 1.0


class PlainProgress:
    """A line now and then, with the time that is left."""

    def __init__(self, unit: str, first: int = 0) -> None:
        """`first`: what is done already."""
        now = time.monotonic()
        self._unit, self._told = unit, now
        self._marks = deque([(now, now, first)])
        """(when it began, when it ended, what was done then), oldest first."""

    def tell(self, done: int, total: int, status: str = "") -> None:
        """`done` counts from 0 and includes `first`."""
        now = time.monotonic()
        self._mark(now, done)
        if now - self._told < _EVERY_SECONDS:
            return
        self._told = now
        _, since, before = self._marks[0]
        left = (now - since) / max(done - before, 1) * (total - done)
        print(f"{self._unit} {done}/{total}  {status}  ETA {timedelta(seconds=round(left))}", flush=True)

    def _mark(self, now: float, done: int) -> None:
        begun, last, _ = self._marks[-1]
        if now - last < _AT_ONCE_S and now - begun < _ONE_MARK_S:
            self._marks[-1] = begun, now, done
        else:
            self._marks.append((now, now, done))
        while len(self._marks) > 2 and now - self._marks[1][1] > _WINDOW_S:
            self._marks.popleft()


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
