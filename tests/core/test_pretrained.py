"""Models by name, as far as no array library is needed."""

import subprocess
import sys

import pytest

from matattn import pretrained
from matattn.errors import BundleError


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Return a folder with the names of two shipped models."""
    for name in ("mp-formation-energy", "mp-band-gap"):
        (tmp_path / "pretrained" / name).mkdir(parents=True)
        (tmp_path / "pretrained" / name / "config.json").write_text("{}")
    (tmp_path / "pretrained" / "__pycache__").mkdir()
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_names_and_paths_are_found(shipped, tmp_path, monkeypatch):
    assert pretrained.names() == ["mp-band-gap", "mp-formation-energy"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mp-band-gap").mkdir()
    assert pretrained.find("mp-band-gap") == shipped / "mp-band-gap"
    assert pretrained.find("./mp-band-gap").samefile(tmp_path / "mp-band-gap")


def test_unknown_names_are_told_with_the_known_ones(shipped):
    with pytest.raises(BundleError, match=r"mp-bandgap: no such folder.*did you mean 'mp-band-gap'"
                       r".*known: mp-band-gap, mp-formation-energy"):  # fmt: skip
        pretrained.find("mp-bandgap")
    with pytest.raises(BundleError, match="no such folder") as error:
        pretrained.find("something/else/entirely")
    assert "did you mean" not in str(error.value)


def test_an_unknown_name_is_told_before_pytorch_is_loaded():
    code = (
        "import sys, matattn\n"
        "from matattn.errors import BundleError\n"
        "from matattn.cli import app\n"
        "try: matattn.load('mp-formation-enrgy')\n"
        "except BundleError: pass\n"
        "try: app(['predict', 'mp-formation-enrgy', 'x.cif'])\n"
        "except SystemExit as end: assert end.code == 2\n"
        "assert not {'torch', 'numpy', 'pymatgen'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("error: mp-formation-enrgy: no such folder")
