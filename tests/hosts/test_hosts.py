"""Two network namespaces as two machines: one is lost and comes back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import nursery
from tests.conftest import ROOT, UATMC


def test_a_machine_is_lost_twice_and_comes_back(tmp_path):
    (tmp_path / "shims").mkdir()
    with nursery.shims(tmp_path / "shims", Path(UATMC[-1])) as first:
        places = os.pathsep.join([str(first), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            [str(ROOT / "launch/hosts/two-hosts.sh"), str(tmp_path)],
            cwd=ROOT, env={**os.environ, "PATH": places, "VIRTUAL_ENV": sys.prefix}, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: lost twice, back twice, finished" in done.stdout
