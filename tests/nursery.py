"""Ranks that start at once: they are forked from a process that has imported torch, TorchRec and the trainer already.

Each of these imports takes some five seconds of a core, and the tests start hundreds of ranks. What a user's start adds
is tested where the tests start that: in the cluster of tests/slurm and from tests/end_to_end. On a machine with a GPU
each of them imports for itself.

The process that pytest is started in keeps the nursery, and forks for its workers as well.
"""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from unittest import mock

import psutil

# A process that has looked for a GPU must not be forked, and the import of DeepSpeed looks.
_MAY_FORK = shutil.which("nvidia-smi") is None
_FORKS = multiprocessing.get_context("forkserver" if _MAY_FORK else "spawn")
_FORKS.set_forkserver_preload(
    [
        "tests.uncollected",
        *("uatmc_dist.training", "uatmc_dist.cli", "uatmc_dist.evaluation.comparison", "deepspeed", "tensorboard"),
        # What these import when they first need it.
        *("uatmc_dist.models.linear_fusion", "uatmc_dist.models.mmgcn", "uatmc_kernels.tiled", "uatmc_dist.embedded"),
        *("uatmc_dist.content_attacks.suite", "uatmc_dist.evaluation.report.page", "uatmc_dist.tables.accuracy"),
        *("torch.utils.tensorboard", "torch._dynamo", "torch.distributed.optim", "torch.utils.serialization"),
        *("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer"),
        *("sentence_transformers", "transformers.models.bert.modeling_bert", "pyarrow.dataset"),
        *("optuna", "sqlalchemy", "jinja2", "rich._emoji_codes"),
    ]
)
_DOOR = "UATMC_TESTS_NURSERY"
_one_at_a_time = threading.Lock()
_OF_THE_SERVER = {
    "OMP_NUM_THREADS": "1",  # read when it starts, and by its torch when that is imported
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of semaphores that a killed process has left: tests kill some
}


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Forks for this process and those it starts."""
    with tempfile.TemporaryDirectory() as folder, Listener(str(Path(folder) / "door"), "AF_UNIX", backlog=64) as door:
        os.environ[_DOOR] = str(door.address)
        threading.Thread(target=_keep, args=(door,), daemon=True).start()
        yield


def _keep(door: Listener) -> None:
    with contextlib.suppress(OSError):  # it is closed
        while True:
            threading.Thread(target=_look_after_one, args=(door.accept(),), daemon=True).start()


def _look_after_one(asking: Connection) -> None:
    with asking, contextlib.suppress(EOFError, OSError):  # whoever asked may be gone
        process = _FORKS.Process(target=_called, args=(asking.recv_bytes(),))
        with _one_at_a_time, mock.patch.dict(os.environ, _OF_THE_SERVER):
            process.start()
        asking.send(process.pid)
        wait([process.sentinel])
        with _one_at_a_time:  # a start asks after all processes; of two that ask after one, one is told 255
            process.join()
        asking.send(process.exitcode)


def _called(pickled: bytes) -> None:
    target, arguments = pickle.loads(pickled)
    target(*arguments)


class _Fork:
    """A function's call in a forked process."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        self._nursery = Client(os.environ[_DOOR], "AF_UNIX")
        self._nursery.send_bytes(pickle.dumps((target, arguments)))
        self.pid: int = self._nursery.recv()
        self._status: int | None = None

    @property
    def exitcode(self) -> int | None:
        """None while it runs."""
        self.join(0)
        return self._status

    def join(self, timeout: float | None = None) -> None:
        if self._status is None and self._nursery.poll(timeout):
            self._status = self._nursery.recv()
            self._nursery.close()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may end at any moment
            if self.exitcode is None:
                os.kill(self.pid, number)


def run(
    ranks: int, arguments: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Of a script: the first exit status that is not 0, and what all ranks printed. As under torchrun, a rank that
    fails ends the others."""
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} for rank in range(ranks)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory() as prints:
        outputs = [Path(prints) / str(rank) for rank in range(ranks)]
        processes = []
        for place, output in zip(places, outputs, strict=True):
            variables = {**environment, **meeting, **place} if ranks > 1 else environment
            streams = _stream(output, "stdout"), _stream(output, "stderr")
            processes.append(_Fork(_alone, script, arguments, folder, variables, *streams))
        deadline, status = time.monotonic() + timeout, 0
        while any(process.exitcode is None for process in processes):
            failed = [process.exitcode for process in processes if process.exitcode]
            if (failed or time.monotonic() > deadline) and not status:
                status = failed[0] if failed else -1
                for process in processes:
                    process.send_signal(signal.SIGTERM)
                deadline = time.monotonic() + 30
            elif status and time.monotonic() > deadline:
                for process in processes:
                    process.send_signal(signal.SIGKILL)
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
    door.sendall(json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid()]).encode() + b"\\n")
    sys.exit(int(door.makefile().read()))
"""


@contextlib.contextmanager
def shims(folder: Path, uatmc: Path) -> Iterator[Path]:
    """A folder for the front of PATH, whose `uatmc` and `python -m torch.distributed.run` are forked from here: for
    scripts and notebooks that start them themselves."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            name, words, where, environment, asking = json.loads(self.rfile.readline())
            program, words = (torchrun, words[2:]) if name == "python" else (script, [str(uatmc), *words])
            process = _Fork(_instead_of, asking, program, words, Path(where), environment)
            process.join()
            with contextlib.suppress(BrokenPipeError):  # whoever asked may be gone
                self.wfile.write(str(process.exitcode).encode())

    door = str(folder / "door")
    for name in ("uatmc", "python"):
        (folder / name).write_text(_SHIM.format(python=sys.executable, name=name, door=door))
        (folder / name).chmod(0o755)
    with socketserver.ThreadingUnixStreamServer(door, Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()


class Started:
    """A forked process that goes on beside the test: a script, or `torchrun`."""

    def __init__(
        self, program: Callable[[list[str]], None], words: list[str], folder: Path, environment: dict[str, str]
    ) -> None:
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115, it is there as long as this is
        output = Path(self._output.name)
        self._process = _Fork(_alone, program, words, folder, environment, output, output)

    def poll(self) -> int | None:
        """Its exit status, where it has ended."""
        return self._process.exitcode

    def printed(self) -> str:
        return Path(self._output.name).read_text(encoding="utf-8", errors="replace")

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def ranks(self) -> list[psutil.Process]:
        """Of torchrun, in rank order."""
        return sorted(psutil.Process(self._process.pid).children(), key=lambda child: (child.create_time(), child.pid))

    def finish(self, timeout: float) -> tuple[int | None, str]:
        """Exit status, and what all of it printed."""
        self._process.join(timeout)
        if self.poll() is None:
            for rank in self.ranks():
                rank.kill()
            self._process.send_signal(signal.SIGKILL)
            self._process.join()
        return self.poll(), self.printed()


def _stream(output: Path, name: str) -> Path:
    return output.with_name(f"{output.name}.{name}")


def _alone(
    program: Callable[[list[str]], None],
    words: list[str],
    folder: Path,
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    _become(folder, environment, stdout, stderr)
    program(words)


def _instead_of(
    asking: int, program: Callable[[list[str]], None], words: list[str], folder: Path, environment: dict[str, str]
) -> None:
    """In the network of the process that asked for it, and what is printed goes where that one prints."""
    with Path(f"/proc/{asking}/ns/net").open() as network:
        if os.fstat(network.fileno()).st_ino != Path("/proc/self/ns/net").stat().st_ino:
            assert ctypes.CDLL(None).setns(network.fileno(), 0) == 0
    _alone(program, words, folder, environment, Path(f"/proc/{asking}/fd/1"), Path(f"/proc/{asking}/fd/2"))


def torchrun(words: list[str]) -> None:
    """Its own agent, which forks the ranks instead of starting them."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    if _MAY_FORK:
        subprocess_handler.SubprocessHandler._popen = lambda self, command, variables: _Forked(list(command), variables)
    run.main(words)


class _Forked:
    """What torchrun wants of subprocess.Popen: `python -u SCRIPT ...` as a fork."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_of_torchrun, args=(command[2:], environment))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired("a rank", timeout)
        return status


def _of_torchrun(arguments: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    script(arguments)


def _become(folder: Path, environment: dict[str, str], stdout: Path, stderr: Path) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    gc.freeze()  # what was imported is not looked through again, a third of a second each time
    gc.enable()


def script(arguments: list[str]) -> None:
    """As `python SCRIPT ...` does."""
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
