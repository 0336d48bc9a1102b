"""The site is built without a warning, and its pages need nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .commands import ROOT

LOADED = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"')


@pytest.fixture(scope="module")
def site():
    """The folder of the strictly built site, where .ci/run makes it: only what is new is built."""
    folder = ROOT / "build/docs"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_formulas_are_mathml(site):
    text = (site / "reference/kernels.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert ":math:" not in text and r"\frac" not in text


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site):
    """Those of files that are included from outside of docs/, too."""
    for page in ("contributing.html", "changelog.html", "reference/low_rank_routing.html"):
        text = (site / page).read_text(encoding="utf-8")
        for target in re.findall(r'href="((?!https?:|#|mailto:)[^"#?]+)', text):
            assert (site / page).parent.joinpath(target).exists(), f"{page}: {target}"
