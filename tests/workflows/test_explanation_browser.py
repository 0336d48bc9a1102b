"""The report in a browser: the structure is drawn, and another head draws other numbers."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from matattn.attention import AttentionRecord
from matattn.workflows.explain.report import Section, write_report
from matattn.workflows.structures.scene import scene

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]


def shown(path) -> str:
    """The text under the picture, after the page's scripts have run."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
         "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return re.search(r'id="described">([^<]*)<', done.stdout).group(1)


def test_the_structure_is_drawn(tmp_path):
    item = {
        "z": torch.tensor([11, 17]),
        "pos": torch.tensor([[0.0, 0, 0], [2.8, 0, 0]]),
        "cell": 5.6 * torch.eye(3)[None],
    }
    weight = np.array([[[0.75, 0.25, 0.01]]])
    record = AttentionRecord(
        np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([2.8, 2.8, 2.8]), weight, "Å",
        image=np.array([[0, 0, 0], [-1, 0, 0], [0, 0, 0]]),
    )  # fmt: skip
    page = tmp_path / "report.html"
    write_report(page, "<b>", [Section("first", "text")], [scene("salt", "e 1 eV.", item, record)])
    text = shown(page)
    assert text == ("e 1 eV. 2 of 3 stored neighbours are drawn; the widest has weight 0.750.")
    # What a reader does: another threshold.
    page.write_text(page.read_text().replace('value="0.02"', 'value="0.5"'))
    assert "1 of 3 stored" in shown(page)
