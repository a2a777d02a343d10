"""docs/tutorial.md, run as the notebook that it is."""

import os
from pathlib import Path

import jupytext
from nbclient import NotebookClient

from tests import nursery
from tests.conftest import ROOT, UATMC, environment


def test_the_tutorial_runs_from_top_to_bottom(tmp_path, tmp_path_factory, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = jupytext.read(ROOT / "docs/tutorial.md")
    place = {"metadata": {"path": str(tmp_path)}}
    with nursery.shims(tmp_path_factory.mktemp("shims"), Path(UATMC[-1])) as first:
        monkeypatch.setenv("PATH", f"{first}{os.pathsep}{os.environ['PATH']}")
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert (tmp_path / "runs/report.html").stat().st_size > 10_000
