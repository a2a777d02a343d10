"""The version matrix is the one of launch/env, and a mismatch is told in one line."""

import re

import pytest

from conftest import ROOT
from uatmc_dist import doctor


@pytest.mark.parametrize("kind, required", [("cpu", doctor.REQUIRED_CPU), ("cuda", doctor.REQUIRED_CUDA)])
def test_the_matrix_is_what_the_requirement_files_pin(kind, required):
    text = (ROOT / "launch/env/base.txt").read_text() + (ROOT / f"launch/env/{kind}.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==([\w.+]+)", text, flags=re.MULTILINE))
    if kind == "cpu":
        shim = (ROOT / "packaging/fbgemm-gpu-shim/setup.py").read_text()
        pins["fbgemm-gpu"] = re.search(r'version="([^"]+)"', shim)[1]
    assert required == {package: pins[package] for package in required}


def test_this_environment_is_right():
    assert [finding for finding in doctor.examine(doctor.has_cuda_machine()) if finding.problem] == []


@pytest.mark.parametrize("package", ["torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "deepspeed", "triton"])
@pytest.mark.parametrize("found", [None, "1.9.0"])
def test_a_mismatch_is_found(monkeypatch, package, found):
    versions = {**doctor.REQUIRED_CPU, **doctor.OPTIONAL_CPU, package: found}
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    problems = [finding.package for finding in doctor.examine(cuda=False) if finding.problem]
    assert problems == ([] if package == "triton" and found is None else [package])


def test_what_keeps_triton_and_torch_from_the_gpu_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    driver, compiler, headers = doctor.gpu_problems()
    assert "CUDA 13.0 needs a newer NVIDIA driver" in driver and "gcc" in compiler and "python3-dev" in headers
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.gpu_problems() == []


def test_the_cpu_build_of_fbgemm_is_refused_beside_the_cuda_one(monkeypatch):
    versions = {**doctor.REQUIRED_CUDA, "fbgemm-gpu-cpu": "1.8.0"}
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    monkeypatch.setattr(doctor, "_triton_of_torch", lambda: None)
    assert [finding.package for finding in doctor.examine(cuda=True) if finding.problem] == ["fbgemm-gpu-cpu"]
