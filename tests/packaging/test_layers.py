"""The import contracts of pyproject.toml see what they should see."""

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


@pytest.fixture
def modules_only(root, folders, tmp_path) -> Path:
    """A copy of pyproject.toml and all modules, with a module ``target`` in every folder."""

    def others(folder, names):
        return [name for name in names if "." in name and not name.endswith(".py")]

    for folder in ("matattn", *folders):
        shutil.copytree(root / folder, tmp_path / folder, symlinks=True, ignore=others)
    shutil.copy(root / "pyproject.toml", tmp_path)
    targets = ("models", "datasets", "matattn/structures", "matattn/meshes")
    for folder in (*targets, "workflows/structures", "workflows/meshes"):
        (tmp_path / folder / "target.py").write_text("def f(): ...\n")
    return tmp_path


def lint(folder: Path) -> str:
    """What import-linter says of a broken contract."""
    command = shutil.which("lint-imports", path=Path(sys.executable).parent)
    assert command, "import-linter is missing: install the test extra"
    run = subprocess.run([command, "--no-cache"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 1 and "BROKEN" in run.stdout, run.stdout + run.stderr
    return run.stdout


def plant(folder: Path, file: str, line: str) -> None:
    """Add an import within a function, where a reader may miss it."""
    with (folder / file).open("a") as handle:
        handle.write(f"\n\ndef late():\n    {line}\n")


FLOORS = "Floors: kernels < core < models, datasets < workflows < cli"
CORE = "Core: families are independent, and rooms that all share know none of them"
WORKFLOWS = "Workflows: run > families > what they share"
KERNELS = "Kernels need torch, numpy and triton only"


@pytest.mark.parametrize(
    "contract, file, line",
    [
        (FLOORS, "kernels/planted.py", "from matattn.errors import MatattnError"),
        (KERNELS, "kernels/planted.py", "import scipy"),
        (FLOORS, "matattn/errors.py", "from matattn.models.target import f"),
        (FLOORS, "models/planted.py", "from matattn.datasets.target import f"),
        (FLOORS, "models/planted.py", "from matattn.workflows.structures.target import f"),
        (FLOORS, "datasets/planted.py", "from matattn.models.target import f"),
        (FLOORS, "workflows/outputs.py", "from matattn.cli import main"),
        (CORE, "matattn/meshes/planted.py", "from matattn.structures.target import f"),
        (CORE, "matattn/structures/planted.py", "from matattn.spins import PAULI"),
        (CORE, "matattn/files.py", "from matattn.structures.target import f"),
        (CORE, "matattn/training/planted.py", "from matattn.meshes.target import f"),
        (CORE, "matattn/text.py", "from matattn.testing import random_crystal"),
        (
            WORKFLOWS,
            "workflows/meshes/planted.py",
            "from matattn.workflows.structures.target import f",
        ),
        (WORKFLOWS, "workflows/text/planted.py", "from matattn.workflows.run import run"),
        (
            WORKFLOWS,
            "workflows/explain/planted.py",
            "from matattn.workflows.structures.target import f",
        ),
        (WORKFLOWS, "workflows/fitting.py", "from matattn.workflows.meshes.target import f"),
        (WORKFLOWS, "workflows/reporting.py", "from matattn.workflows.meshes.target import f"),
        (WORKFLOWS, "workflows/task.py", "from matattn.workflows.outputs import Outputs"),
    ],
)
def test_planted_violation_is_caught(modules_only, contract, file, line):
    plant(modules_only, file, line)
    said = lint(modules_only)
    assert f"{contract} BROKEN" in said
    module = file.removesuffix(".py").replace("/", ".")
    imported = line.split()[1]
    assert f"{module} -> {imported}" in said


@pytest.mark.parametrize("folder", ["datasets", "workflows/structures", "matattn/meshes"])
def test_planted_circle_is_caught(modules_only, folder):
    """Of two modules: one imports the other at once, which looks back when it is called."""
    package = folder if folder.startswith("matattn") else f"matattn/{folder}"
    package = package.replace("/", ".")
    (modules_only / folder / "planted.py").write_text(f"from {package}.target import f\n")
    plant(modules_only, f"{folder}/target.py", f"from {package}.planted import f")
    said = lint(modules_only)
    assert "No circles of imports BROKEN" in said
    assert f"No cycles are allowed in {package}." in said


@pytest.mark.parametrize("folder", ["matattn", "workflows"])
def test_unlisted_module_is_caught(modules_only, folder):
    """A new module of the core or of workflows/ must take its place in the contract."""
    (modules_only / folder / "planted.py").write_text("")
    assert f"{folder}.planted" in lint(modules_only)
