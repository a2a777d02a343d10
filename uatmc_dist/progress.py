"""Progress of long work where there is no terminal for a bar."""

import time
from datetime import timedelta

_EVERY_SECONDS = 10.0


class PlainProgress:
    """A line now and then, with the time that is left."""

    def __init__(self, unit: str, first: int = 0) -> None:
        self._unit, self._first = unit, first
        self._started = self._told = time.monotonic()

    def tell(self, done: int, total: int, status: str = "") -> None:
        """`done` counts from 0 and includes the `first` that an earlier run did."""
        now = time.monotonic()
        if now - self._told < _EVERY_SECONDS:
            return
        self._told = now
        left = (now - self._started) / max(done - self._first, 1) * (total - done)
        print(f"{self._unit} {done}/{total}  {status}  ETA {timedelta(seconds=round(left))}", flush=True)
