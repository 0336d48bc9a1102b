"""The notebooks are small, stored with outputs, and run from a clean kernel."""

from __future__ import annotations

import sys

import nbformat
import pytest

from .commands import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from notebooks import NOTEBOOKS, execute  # noqa: E402

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
FAMILIES = {"crystals", "molecules", "spins", "meshes", "text"}


def test_every_family_has_one():
    assert {path.stem for path in PATHS} == FAMILIES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_stored_and_small(path):
    assert path.stat().st_size < 200_000
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "renew it: python tools/notebooks.py"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    for place in ("/root", "/tmp", "/home", "site-packages"):
        assert place not in str(outputs), f"{path.name} shows a place of the machine it ran on"


@pytest.mark.slow
@pytest.mark.share(2)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    execute(path, tmp_path)
