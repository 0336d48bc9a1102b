"""The layer contract of pyproject.toml sees what it should see."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest


def test_contract_sees_every_module(root, modules):
    """A folder of modules without an __init__.py would escape, the linked folders apart."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    graph = grimp.build_graph(*settings["root_packages"], cache_dir=None)
    assert modules <= graph.modules


def lint(folder: Path) -> subprocess.CompletedProcess:
    command = shutil.which("lint-imports", path=Path(sys.executable).parent)
    assert command, "import-linter is missing: install the test extra"
    return subprocess.run([command, "--no-cache"], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    "file, line",
    [
        ("kernels/planted.py", "from matattn.errors import MatattnError"),
        ("kernels/planted.py", "import scipy.linalg"),
        ("matattn/errors.py", "from matattn.models.target import f"),
        ("models/planted.py", "from matattn.datasets.target import f"),
        ("models/planted.py", "from matattn.workflows.target import f"),
        ("datasets/planted.py", "from matattn.models.target import f"),
        ("workflows/planted.py", "from matattn.cli import main"),
    ],
)
def test_planted_violation_is_caught(sources, file, line):
    for folder in ("models", "datasets", "workflows"):
        (sources / folder / "target.py").write_text("def f(): ...\n")
    with (sources / file).open("a") as handle:
        handle.write(f"\n\ndef late():\n    {line}\n")
    run = lint(sources)
    assert run.returncode == 1
    assert "BROKEN" in run.stdout
    module = file.removesuffix(".py").replace("/", ".")
    assert module in run.stdout


def test_unlisted_core_module_is_caught(sources):
    """A new module of the core must take its place in the contract."""
    (sources / "matattn" / "planted.py").write_text("")
    run = lint(sources)
    assert run.returncode == 1
    assert "matattn.planted" in run.stdout
