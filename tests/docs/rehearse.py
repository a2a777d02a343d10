"""A module of the project, run at sizes that take seconds: `rehearse.py MODULE [ARGUMENT ...]` in a workplace.

What the module starts (train.py, `uatmc`) is forked from here, where all is imported already.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

TINY = {"users": 60, "items": 200, "interactions": 1600, "visual_dim": 32, "text_dim": 16}
SIZES: dict[str, dict[str, Any]] = {
    "benchmarks.content_lift": {"SEEDS": (0,)},
    "benchmarks.memory": {"PAIRS": 32, "DIM": 4},
    "benchmarks.million_items": {"CATALOG": TINY},
    "benchmarks.published": {
        "BACKBONES": {"vbpr": ["clean.epochs=1"], "mmgcn": ["clean.epochs=1", "clean.objective=sampled"]},
        "DEFENCE": ["adversarial.epochs=1", "adversarial.objective=sampled"],
        "TARGETS": {name: ["attack.num_targets=2", "attack.any_content=false"] for name in ("vbpr", "mmgcn")},
    },
    "benchmarks.scale": {
        "CATALOG": {name: size for name, size in TINY.items() if name != "items"},
        "SIZES": (150, 200, 300),
        "BATCH": 16,
    },
    "benchmarks.scaling": {"USERS": 60, "INTERACTIONS": 1600, "STRONG": (150, 250), "WEAK": (150,), "BATCH": 32},
    "benchmarks.trainer_step": {"SIZES": TINY},
}
"""Constants of modules that have no option for them."""


_RUN = subprocess.run
_COMPILES = "benchmarks.kernels.launch_table"
"""It needs a Triton that does not interpret, which a fork from here does."""


def main() -> None:
    name = sys.argv.pop(1)
    sys.path.insert(0, os.getcwd())
    subprocess.run = _forked  # type: ignore[assignment]
    torch.compile = lambda function, **options: function  # type: ignore[assignment]  # minutes of a C++ compiler
    spawned = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: spawned("fork")  # type: ignore[assignment,arg-type]
    module = _small(name)
    if name.startswith(("benchmarks.kernels", "benchmarks.gpu")):
        harness: Any = importlib.import_module("benchmarks.kernels.harness")
        machine = harness.this_machine("cpu")  # takes a second, which the forks need not take again
        harness.this_machine = lambda device: machine
    if name == "benchmarks.gpu":
        module.ended = lambda command, limit_s: _forked(command, env=module._environment()).returncode
    if getattr(module, "main", None) is not None and module.main.__module__ == name:
        sys.argv[0] = str(module.__file__)
        module.main()
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _small(name: str) -> Any:
    """The module, with its small sizes."""
    module = importlib.import_module(name)
    for constant, value in SIZES.get(name, {}).items():
        assert hasattr(module, constant), f"{name}.{constant}"
        setattr(module, constant, value)
    return module


def _forked(command: Any, **options: Any) -> subprocess.CompletedProcess:
    """`subprocess.run` of a Python program, as a fork."""
    words = [str(word) for word in command]
    if words[0] != sys.executable or _COMPILES in words:
        given = options.get("env") or dict(os.environ)
        return _RUN(command, **{**options, "env": {k: v for k, v in given.items() if k != "TRITON_INTERPRET"}})
    words = words[1:]
    if words[:2] == ["-m", "pytest"]:  # tests that run anyway
        return subprocess.CompletedProcess(command, 0)
    if words[:2] == ["-m", "torch.distributed.run"]:
        words = words[words.index("--standalone") + 2 :]  # of one rank
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    process = os.fork()
    if not process:
        os.close(read)
        for number in (1, 2):
            os.dup2(write, number)
        _as(words, options.get("env"))
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        printed = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    for stream in {options.get("stdout"), options.get("stderr")}:
        if isinstance(stream, io.TextIOBase):
            stream.write(printed)
    if status:
        print(printed[-3000:], file=sys.stderr)
    return subprocess.CompletedProcess(command, status, printed, "")


def _as(words: list[str], environment: dict[str, str] | None) -> None:
    status = 1
    try:
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        if words[0] == "-m" and words[1] in SIZES:
            sys.argv = words[1:]
            _small(words[1]).main()
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    Path("benchmarks/results").mkdir(parents=True, exist_ok=True)
    main()
