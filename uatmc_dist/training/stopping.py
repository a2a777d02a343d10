"""How training ends before its end: Ctrl-C and SIGTERM, and a step that does not end in time after SIGTERM."""

import signal
from collections.abc import Callable
from types import FrameType

GRACE_S = 40.0
"""How long a step may take after SIGTERM: a scheduler kills after a minute or so, and a checkpoint takes time, too."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after a checkpoint was saved; or SIGTERM in a step that does not end in time."""

    def __init__(self, signum: int, is_in_a_step: bool = False) -> None:
        super().__init__(signum)
        self.signum, self.is_in_a_step = signum, is_in_a_step


class StopSignals:
    """Remembers a signal until the loop asks for it between two steps."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked_by = 0
        """The signal that came, or 0."""
        self.is_stopping = False
        """Whether the loop has heard it: it saves then, and is not interrupted."""
        self._say = say

    def watch(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._remember)
        signal.signal(signal.SIGALRM, self._give_up)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.asked_by = signum
        if signum == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _give_up(self, signum: int, frame: FrameType | None) -> None:
        if not self.is_stopping:
            self._say(f"interrupted in a step of more than {GRACE_S:g} s; the last checkpoint is what goes on")
            raise Interrupted(signal.SIGTERM, is_in_a_step=True)
