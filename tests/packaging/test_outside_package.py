"""A package that brings a network and a data set, installed with pip and used as a user would."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "outside_package"
pytestmark = pytest.mark.slow
MATATTN = "from matattn.cli import main; main()"


@pytest.fixture(scope="module")
def site(tmp_path_factory, root):
    """The folder that the package is installed into."""
    folder = tmp_path_factory.mktemp("outside")
    ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(PACKAGE, folder / "source", ignore=ignore)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(folder / "site"), "./source"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def run(site, root, tmp_path_factory):
    """Return a function that runs Python with the package, or without it."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def python(*arguments, installed=True):
        path = os.pathsep.join([*([str(site)] if installed else []), str(root)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, text=True,
                              env=environment, capture_output=True, timeout=400)  # fmt: skip

    return python


@pytest.fixture(scope="module")
def trained(run, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    overrides = ["model=schnet", "trainer.max_epochs=25", "optimizer.lr=5e-3", "data.rows=200"]
    result = run(root / "train.py", *overrides, f"paths.output_dir={folder}")
    assert result.returncode == 0, result.stderr
    return folder


def test_network_keeps_the_contract(run):
    result = run("-m", "pytest", "-q", "-p", "no:cacheprovider", PACKAGE / "checks" / "contract.py")
    assert result.returncode == 0, result.stdout + result.stderr


def test_it_learns(trained):
    result = json.loads((trained / "metrics.json").read_text())["test"]["pair_energy"]
    assert result["mae"] < 0.7 * result["baselines"]["mean"]
    assert "SchNet on pair_potential" in (trained / "report.md").read_text()


def test_model_predicts_and_is_cited(run, trained, root):
    crystal = root / "docs" / "examples" / "NaCl.cif"
    result = run("-c", MATATTN, "predict", trained / "model", crystal)
    assert result.returncode == 0 and ",eV/atom," in result.stdout, result.stderr
    assert "@inproceedings{schnet," in run("-c", MATATTN, "cite", trained / "model").stdout
    listed = run("-c", MATATTN, "models")
    assert "matattn-schnet 1.2: network SchNet" in listed.stdout, listed.stderr
    assert "data=pair_potential" in run("-c", MATATTN, "info").stdout


def test_model_is_refused_without_the_package(run, trained, root):
    for command in ("predict", "evaluate", "cite"):
        arguments = {"predict": [root / "docs" / "examples" / "NaCl.cif"], "cite": []}
        more = arguments.get(command, ["prototypes"])
        result = run("-c", MATATTN, command, trained / "model", *more, installed=False)
        (line,) = result.stderr.strip().splitlines()
        assert result.returncode == 2 and line.startswith("error: ")
        assert "matattn-schnet 1.2, which is not installed" in line
    result = run(root / "train.py", "model=schnet", installed=False)
    assert result.returncode == 2 and "Could not find 'model/schnet'" in result.stderr


def test_a_training_may_start_from_it(run, trained, root, tmp_path):
    result = run(root / "train.py", "data=pair_potential", "data.seed=1", "data.rows=60",
                 f"init_from={trained / 'model'}", "trainer.max_epochs=1",
                 f"paths.output_dir={tmp_path / 'run'}")  # fmt: skip
    assert result.returncode == 0, result.stderr
