"""A copy of the source tree to build, break and move without touching the checkout."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("conf", "datasets", "kernels", "models", "workflows")
FILES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "constraints.txt",
    "train.py",
)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def folders() -> tuple[str, ...]:
    """The top-level folders that matattn/ links to."""
    return FOLDERS


@pytest.fixture(scope="session")
def packaged() -> Callable[..., set[str]]:
    """Archive names of our files with the given suffixes: matattn/models/flare.py, ..."""

    def names(*suffixes: str) -> set[str]:
        files = {p.relative_to(ROOT / "matattn") for p in (ROOT / "matattn").rglob("*")}
        files |= {p.relative_to(ROOT) for folder in FOLDERS for p in (ROOT / folder).rglob("*")}
        return {f"matattn/{file.as_posix()}" for file in files if file.suffix in suffixes}

    return names


@pytest.fixture(scope="session")
def modules(packaged) -> set[str]:
    """Every module by its import name."""
    names = (name.removesuffix(".py").removesuffix("/__init__") for name in packaged(".py"))
    return {name.replace("/", ".") for name in names}


def copy_sources(target: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("matattn", *FOLDERS):
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignore)
    for file in FILES:
        shutil.copy(ROOT / file, target)
    return target


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A fresh copy of everything that is packaged."""
    return copy_sources(tmp_path)


@pytest.fixture(scope="session")
def planted_model() -> set[str]:
    """Files of a shipped model that ``built`` adds, so that there is one."""
    files = ("model.safetensors", "config.json", "card.md", "SHA256SUMS")
    return {f"matattn/pretrained/planted-model/{file}" for file in files}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, planted_model: set[str]) -> Path:
    """The folder with the sdist, and the wheel that was built from it."""
    target = copy_sources(tmp_path_factory.mktemp("build"))
    for file in planted_model:
        (target / file).parent.mkdir(exist_ok=True)
        (target / file).write_text("planted")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    environment = dict(os.environ)
    if compiler := shutil.which("cc"):  # nobody runs these kernels: they need not be fast
        environment["CC"] = str(target / "cc")
        (target / "cc").write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
        (target / "cc").chmod(0o755)
    run = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return target / "dist"
