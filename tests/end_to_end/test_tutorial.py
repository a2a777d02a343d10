"""docs/tutorial.md, run as the notebook that it is."""

import os
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

from tests.conftest import ROOT, environment


def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = jupytext.read(ROOT / "docs/tutorial.md")
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert (tmp_path / "runs/report.html").stat().st_size > 10_000
