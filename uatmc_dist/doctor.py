"""The version matrix: what runs together (launch/env), what is installed, and what to install."""

import importlib.metadata
import os
import platform
import re
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

REQUIRED_CPU = {
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu": "1.8.0+cpu.shim",
    "fbgemm-gpu-cpu": "1.8.0",
    "deepspeed": "0.19.8",
}
REQUIRED_CUDA = {
    "torch": "2.13.0",
    "torchrec": "1.8.0",
    "fbgemm-gpu": "1.8.0",
    "deepspeed": "0.19.8",
}
OPTIONAL_CPU = {"triton": "3.7.1"}
"""Training on a CPU goes without: only the tests and the static report of the kernels use it."""


@dataclass(frozen=True)
class Finding:
    package: str
    required: str
    found: str
    problem: str
    """Empty where all is well."""


def has_cuda_machine() -> bool:
    """Whether this machine has an NVIDIA driver; torch is not imported, so that the answer is quick."""
    return shutil.which("nvidia-smi") is not None


def hides_gpus() -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves none: SLURM writes NoDevFiles for a job without any."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")


def examine(cuda: bool) -> list[Finding]:
    required = REQUIRED_CUDA if cuda else REQUIRED_CPU
    findings = [_finding(package, version, optional=False) for package, version in required.items()]
    if not cuda:
        findings += [_finding(package, version, optional=True) for package, version in OPTIONAL_CPU.items()]
        return findings
    if (triton := _triton_of_torch()) is not None:
        findings.append(_finding("triton", triton, optional=False))
    if (found := installed_version("fbgemm-gpu-cpu")) is not None:
        findings.append(Finding("fbgemm-gpu-cpu", "not installed", found, "overwrites the files of fbgemm-gpu"))
    return findings


def problem_of_gpu(index: int) -> str:
    """Empty where TorchRec's tables have code for this GPU: fbgemm-gpu 1.8.0 has it for 8.x, 9.0 and 10.0 alone."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    if major == 8 or (major, minor) in ((9, 0), (10, 0)):
        return ""
    version = REQUIRED_CUDA["fbgemm-gpu"]
    return (
        f"GPU {index} has compute capability {major}.{minor}, and fbgemm-gpu {version} code for 8.x, 9.0 and 10.0 alone"
    )


def gpu_problems() -> list[str]:
    """What keeps an installed CUDA environment from using the GPU: the driver, or what Triton compiles its own with."""
    if hides_gpus():
        return []
    import torch

    problems = []
    if torch.version.cuda and not torch.cuda.is_available():
        problems.append(
            f"no GPU for PyTorch: CUDA {torch.version.cuda} needs a newer NVIDIA driver (nvidia-smi shows yours), or "
            "this job was given no GPU (CUDA_VISIBLE_DEVICES= says that it needs none)"
        )
    elif torch.cuda.is_available() and (problem := problem_of_gpu(0)):
        problems.append(problem)
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        problems.append("no C compiler, which Triton needs; install gcc")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        problems.append("no Python.h, which Triton needs; install python3-dev (the headers of this Python)")
    return problems


def python_problem() -> str:
    ok = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 10)
    return "" if ok else f"Python {platform.python_version()} is too old; 3.10 or newer is needed"


def mend(cuda: bool) -> str:
    """The one line that installs what is missing."""
    file = "cuda" if cuda else "cpu"
    return f"pip install -r launch/env/{file}.txt    (from the project's folder; `launch/setup.sh` does all of it)"


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton_of_torch() -> str | None:
    """The version that the installed torch asks for: on CUDA the two come together."""
    for requirement in importlib.metadata.requires("torch") or ():
        if match := re.match(r"triton==([\w.]+)", requirement):
            return match[1]
    return None


def _finding(package: str, required: str, optional: bool) -> Finding:
    found = installed_version(package)
    if found is None:
        return Finding(package, required, "-", "" if optional else "missing")
    # A required version without a local part (2.13.0) accepts any build of it (2.13.0+cu130).
    matches = found == required if "+" in required else found.split("+")[0] == required
    return Finding(package, required, found, "" if matches else _explain(package, found, required))


def _explain(package: str, found: str, required: str) -> str:
    if package == "fbgemm-gpu" and required.endswith("shim"):
        return "the CUDA build overwrites fbgemm-gpu-cpu; uninstall both and install again"
    if package == "torch" and "+cpu" in required and "+cpu" not in found:
        return "a CUDA build, or another version, on a CPU machine"
    return "another version"
