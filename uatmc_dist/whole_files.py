"""Files that are there whole or not at all, whatever ends their writing, and that one process writes at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Where to write; it takes the place of `file` when the block ends. What was there stays where the block raises.
    Two processes may write the same file."""
    unfinished = file.with_name(f".{file.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def take_lock(file: int) -> bool:
    """Locks an open file until it is closed; False where another process has it. On a disk without locks nobody has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
