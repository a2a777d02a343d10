"""What a GPU would meet, found without one (device.py): tensors on the wrong device, hosts that wait, and Triton's
launches with a pointer of the CPU, collectives whose tensors lie on two devices. And the mistakes that it must find.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from conftest import ROOT, environment


def run(module: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", f"tests.pretend_gpu.{module}", *map(str, arguments)]
    compiled = {**environment(), "TRITON_INTERPRET": "0"}  # arguments are looked at, nothing is launched
    done = subprocess.run(command, cwd=ROOT, env=compiled, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("rank, size, only", [(4, 8, ""), (0, 1, "vbpr, softmax")])
def test_no_step_waits_for_the_device(tiny_catalog, rank, size, only):
    """Every objective, adversary and backbone, forward and backward, as one rank of eight, and some alone."""
    found = run("steps", tiny_catalog, rank, size, "--only", only)
    assert len(found) > (130 if size > 1 else 10)
    assert {name: case["error"] for name, case in found.items() if "error" in case} == {}
    assert {name: case["elsewhere"] for name, case in found.items() if case["elsewhere"]} == {}
    assert {name: case["waits"] for name, case in found.items() if case["waits"]} == {}
    of_gpu = {backend for case in found.values() for _, backend, _ in case["collectives"]}
    assert of_gpu == ({"nccl"} if size > 1 else set())


def test_every_launch_has_its_arguments_on_the_device():
    found = run("launches")
    assert {name: case["error"] for name, case in found.items() if "error" in case} == {}
    assert {name: case["waits"] for name, case in found.items() if case["waits"]} == {}
    assert all(case["launches"] for case in found.values())


def test_a_launch_on_another_device_is_found():
    assert all(
        "not on that of its tensors" in case["error"] for case in run("launches", "--break", "no guard").values()
    )


@pytest.mark.parametrize(
    "mistake, case, told",
    [
        ("indices stay on the CPU", "vbpr, full_catalog, uat_mc", "FakeTensorDeviceMismatchError"),
        ("skipped entries stay on the CPU", "vbpr, full_catalog, uat", "ValueError: skip_B: on cpu"),
        ("uploads wait", "vbpr, softmax, uat", "to the device: blocking copy"),
        ("noise from the CPU", "vbpr, softmax, noise", "to the device: blocking copy"),
        ("the host asks the device", "vbpr, softmax, uat", "to the host: item, tolist or bool"),
    ],
)
def test_a_mistake_is_found(tiny_catalog, mistake, case, told):
    found = run("steps", tiny_catalog, 4, 8, "--only", case, "--break", mistake)[case]
    assert told in found.get("error", "") + " ".join(kind for kind, _, _ in found["waits"])
