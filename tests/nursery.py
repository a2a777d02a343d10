"""Ranks that start at once: they are forked from a process that has imported torch, TorchRec and the trainer already.

Each of these imports takes some five seconds of a core, and the tests start a hundred ranks. What a user's start adds,
torchrun among it, is tested where the tests start that.
"""

import contextlib
import json
import multiprocessing
import os
import runpy
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
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


_SHIM = """#!{python} -IS
import json, os, socket, sys
if {name!r} == "python" and sys.argv[1:3] != ["-m", "torch.distributed.run"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as door:
    door.connect({door!r})
    door.sendall(json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    done = json.loads(door.makefile().read())
sys.stdout.write(done["stdout"])
sys.stderr.write(done["stderr"])
sys.exit(done["status"])
"""


@contextlib.contextmanager
def shims(folder: Path, uatmc: Path) -> Iterator[Path]:
    """A folder for the front of PATH, whose `uatmc` and `python -m torch.distributed.run` are forked from here: for
    scripts and notebooks that start them themselves."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            name, words, where, environment = json.loads(self.rfile.readline())
            ranks, arguments = 1, [str(uatmc), *words]
            if name == "python":
                places = [index for index, word in enumerate(words) if word.startswith("--nproc_per_node=")]
                ranks, arguments = int(words[places[0]].partition("=")[2]), words[places[0] + 1 :]
            done = run(ranks, arguments, Path(where), environment, timeout=600)
            answer = {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
            self.wfile.write(json.dumps(answer).encode())

    door = str(folder / "door")
    for name in ("uatmc", "python"):
        (folder / name).write_text(_SHIM.format(python=sys.executable, name=name, door=door))
        (folder / name).chmod(0o755)
    with socketserver.ThreadingUnixStreamServer(door, Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()


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
