"""Ranks that start at once: they are forked from a process that has imported torch, TorchRec and the trainer already.

Each of these imports takes some five seconds of a core, and the tests start a hundred ranks. What a user's start adds,
torchrun among it, is tested where the tests start that.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["uatmc_dist.training", "uatmc_dist.evaluation.comparison", "deepspeed", "tensorboard", "torch._dynamo"]
)


def run(
    ranks: int, arguments: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Of a script: the first exit status that is not 0, and what all ranks printed. As under torchrun, a rank that
    fails ends the others."""
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} for rank in range(ranks)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "LOCAL_WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory() as prints:
        outputs = [Path(prints) / str(rank) for rank in range(ranks)]
        processes = []
        for place, output in zip(places, outputs, strict=True):
            variables = {**environment, **meeting, **place} if ranks > 1 else environment
            processes.append(_FORKS.Process(target=_rank, args=(arguments, folder, variables, output)))
        for process in processes:
            _start(process)
        deadline, status = time.monotonic() + timeout, 0
        while any(process.exitcode is None for process in processes):
            failed = [process.exitcode for process in processes if process.exitcode]
            if (failed or time.monotonic() > deadline) and not status:
                status = failed[0] if failed else -1
                for process in processes:
                    process.terminate()
                deadline = time.monotonic() + 30
            elif status and time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.02)
        status = status or next((process.exitcode for process in processes if process.exitcode), 0)
        stdout, stderr = (
            "".join(_stream(output, name).read_text(encoding="utf-8", errors="replace") for output in outputs)
            for name in ("stdout", "stderr")
        )
        return subprocess.CompletedProcess(arguments, status, stdout, stderr)


def _stream(output: Path, name: str) -> Path:
    return output.with_name(f"{output.name}.{name}")


def _start(process: multiprocessing.Process) -> None:
    """One thread: the server reads this when it starts, and its torch when that is imported."""
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        process.start()


def _rank(arguments: list[str], folder: Path, environment: dict[str, str], output: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(_stream(output, name), os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
