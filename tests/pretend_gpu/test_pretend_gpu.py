"""What a GPU would meet, found without one (device.py): tensors on the wrong device, hosts that wait, and Triton's
launches with a pointer of the CPU, collectives whose tensors lie on two devices. And the mistakes that it must find.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from conftest import ROOT, environment

MISTAKES = {
    "indices stay on the CPU": ("vbpr, full_catalog, uat_mc", "FakeTensorDeviceMismatchError"),
    "skipped entries stay on the CPU": ("vbpr, full_catalog, uat", "ValueError: skip_B: on cpu"),
    "uploads wait": ("vbpr, softmax, uat", "to the device: blocking copy"),
    "noise from the CPU": ("vbpr, softmax, noise", "to the device: blocking copy"),
    "anchors stay on the CPU": ("vbpr, attack while training", "FakeTensorDeviceMismatchError"),
    "the host asks the device": ("vbpr, softmax, uat", "to the host: item, tolist or bool"),
}
RANKS = [{"rank": 4, "size": 8}, {"rank": 0, "size": 1, "only": "vbpr, softmax"}]


def run(module: str, *arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", f"tests.pretend_gpu.{module}", *map(str, arguments)]
    compiled = {**environment(), "TRITON_INTERPRET": "0"}  # arguments are looked at, nothing is launched
    done = subprocess.run(command, cwd=ROOT, env=compiled, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def steps(tiny_catalog) -> list[dict[str, Any]]:
    jobs = [*RANKS, *({"rank": 4, "size": 8, "only": case, "breaks": name} for name, (case, _) in MISTAKES.items())]
    return run("steps", tiny_catalog, json.dumps(jobs))


@pytest.mark.parametrize("index", range(len(RANKS)), ids=["one of eight", "alone"])
def test_no_step_waits_for_the_device(steps, index):
    """Every objective, adversary and backbone, forward and backward, as one rank of eight, and some alone."""
    found = {name: case for name, case in steps[index].items() if not case["is_after"]}
    assert len(found) > (110, 10)[index]
    assert {name: case["error"] for name, case in found.items() if "error" in case} == {}
    assert {name: case["elsewhere"] for name, case in found.items() if case["elsewhere"]} == {}
    assert {name: case["waits"] for name, case in found.items() if case["waits"]} == {}
    of_gpu = {backend for case in found.values() for _, backend, _ in case["collectives"]}
    assert of_gpu == ({"nccl"}, set())[index]


def test_after_training_the_work_is_done_on_the_device(steps):
    """Ranking, certificate, attacks and whitening, as one rank of eight. They may wait; lists merge on the CPU."""
    found = {name: case for name, case in steps[0].items() if case["is_after"]}
    assert {name: case["error"] for name, case in found.items() if "error" in case} == {}
    assert len(found) == 4 + 3 + 3 + 3
    least = {"evaluate": 60, "certify": 300, "attack": 4_000, "attack while training": 200, "whiten": 30}
    for name, case in found.items():
        assert case["operations"] > least[name.split(", ")[-1]], name
        assert {kind for kind, backend, _ in case["collectives"] if backend == "gloo"} <= {"all_to_all_single"}, name


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(steps, mistake):
    case, told = MISTAKES[mistake]
    found = steps[len(RANKS) + list(MISTAKES).index(mistake)][case]
    assert told in found.get("error", "") + " ".join(kind for kind, _, _ in found["waits"])


def test_every_launch_has_its_arguments_on_the_current_device():
    found, without_guard = run("launches")
    assert {name: case["error"] for name, case in found.items() if "error" in case} == {}
    assert {name: case["waits"] for name, case in found.items() if case["waits"]} == {}
    assert all(case["launches"] for case in found.values())
    assert all("not on that of its tensors" in case["error"] for case in without_guard.values())
