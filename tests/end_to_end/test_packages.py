"""Both wheels, built from their source packages, each in an environment with what it declares and no more."""

import re
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT, environment

USE = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Their paths by the name of the package."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (ROOT / "kernels", ROOT):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


def declared(requirement: Requirement, found: dict[str, set[str]]) -> None:
    """Adds all that an installed package asks for, to any depth: extras by the name of the package."""
    name = canonicalize_name(requirement.name)
    fresh = {""} | requirement.extras
    if name in found and fresh <= found[name]:
        return
    found[name] = found.get(name, set()) | fresh
    for text in distribution(name).requires or ():
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in fresh):
            declared(needed, found)


def installed(folder: Path, requirements: list[str], wheels: list[Path]) -> Path:
    """Python of an environment with these wheels; packages of others are those of this one, by links."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    found: dict[str, set[str]] = {}
    for requirement in requirements:
        declared(Requirement(requirement), found)
    for name in found.keys() - {"uatmc-dist", "uatmc-kernels"}:
        package = distribution(name)
        for top in {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", *map(str, wheels)], check=True)
    subprocess.run([*pip, "check"], check=True, capture_output=True)
    return python


def run(*command: object, cwd: Path) -> str:
    clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kernels_need_pytorch_alone(wheels, tmp_path):
    python = installed(tmp_path / "environment", ["uatmc-kernels"], [wheels["uatmc-kernels"]])
    (example,) = USE.findall((ROOT / "kernels/README.md").read_text(encoding="utf-8"))
    imported = "sorted(sys.modules.keys() & {'pyarrow', 'triton', 'torch._dynamo'})"  # the last takes a second
    where = f"import sys, uatmc_kernels; print(uatmc_kernels.__file__, {imported})"
    told = run(python, "-c", f"{example}\nprint(tuple(best[1].shape))\n{where}", cwd=tmp_path)
    assert told.splitlines()[0] == "(512, 20)"
    assert str(tmp_path) in told and told.endswith("[]\n")
    for missing in ("torchrec", "deepspeed", "uatmc_dist"):
        absent = f"import importlib.util; assert importlib.util.find_spec('{missing}') is None"
        run(python, "-c", absent, cwd=tmp_path)


def test_train_attack_export_and_search_far_from_the_checkout(wheels, tmp_path):
    python = installed(
        tmp_path / "environment",
        ["uatmc-dist[cpu,report]", "faiss-cpu"],
        [wheels["uatmc-kernels"], wheels["uatmc-dist"]],
    )
    uatmc = python.with_name("uatmc")
    version = wheels["uatmc-dist"].name.split("-")[1]
    assert run(uatmc, "--version", cwd=tmp_path) == f"uatmc-dist {version}\n"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    short = ("clean.epochs=1", "adversarial.epochs=1", "model.embedding_dim=8")
    told = run(uatmc, "train", *short, cwd=tmp_path)  # the embedded default
    assert "done: runs/quickstart\n" in told
    for verb in ("evaluate", "attack", "certify", "report", "export"):
        options = ["attack.num_targets=4", "attack.epsilons=[0.1]", "attack.seeds=[1]"] if verb == "attack" else []
        run(uatmc, verb, "runs/quickstart", *options, cwd=tmp_path)
    folder = tmp_path / "runs/quickstart/export"
    plain, in_faiss = USE.findall((folder / "MODEL_CARD.md").read_text(encoding="utf-8"))
    best, found = run(python, "-c", plain + in_faiss, cwd=folder).splitlines()
    assert found == best
