"""Commands on terminals that know few characters, and whose reader is gone."""

import os
import subprocess
import sys

import pytest
from pymatgen.core import Lattice, Structure

COMMAND = [sys.executable, "-c", "from matattn.cli import main; main()"]
TRAIN = [sys.executable, "-c", "from matattn.cli.train import main; main()"]
# An ASCII terminal, and one where Python believes that files have ASCII names as well.
PLAIN = {
    "output": {"PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"},
    "everything": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "no terminal": {"TERM": "dumb"},
}


def run(command, *arguments, settings=None, **options):
    environment = os.environ | (settings or {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120} | options
    return subprocess.run([*command, *arguments], env=environment, **options)


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    """A file whose name has letters of three alphabets; one of them is in Latin-1."""
    path = tmp_path_factory.mktemp("Å") / "Näcl_盐.cif"
    Structure(Lattice.cubic(4), ["Na", "Cl"], [[0] * 3, [0.5] * 3]).to(filename=str(path))
    return path


@pytest.mark.parametrize("terminal", PLAIN)
def test_rows_come_whatever_the_terminal_can_show(crystal, tmp_path, terminal):
    settings, name = PLAIN[terminal], os.fsencode(crystal)
    predict = "predict", "mp-formation-energy"
    shown = run(COMMAND, *predict, name, settings=settings)
    assert shown.returncode == 0 and b"Traceback" not in shown.stderr
    assert b"NaCl" in shown.stdout and b",ok," in shown.stdout
    table = tmp_path / "x.csv"
    listed = run(COMMAND, *predict, "-", "-o", str(table), settings=settings, input=name)
    assert listed.returncode == 0, listed.stderr
    assert crystal.stem in table.read_text(encoding="utf-8")


@pytest.mark.parametrize("terminal", ["output", "everything"])
@pytest.mark.parametrize("arguments", [["train", "--help"], ["predict", "--help"], ["models"]])
def test_help_is_shown(arguments, terminal):
    result = run(COMMAND, *arguments, settings=PLAIN[terminal])
    assert result.returncode == 0 and result.stdout.isascii() and not result.stderr


def test_an_error_with_other_letters_is_one_line():
    result = run(TRAIN, "data=Ångström", settings=PLAIN["output"])
    assert result.returncode == 2 and b"Traceback" not in result.stderr
    assert b"ngstr" in result.stderr


@pytest.mark.parametrize("arguments", [["cite"], ["models"], ["train", "--help"], ["info"]])
def test_a_reader_that_leaves_early_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    result = run(COMMAND, *arguments, stdout=write)
    os.close(write)
    assert result.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("arguments", [["cite"], ["models"]])
def test_a_full_disk_is_one_line(arguments):
    with open("/dev/full", "wb") as full:
        result = run(COMMAND, *arguments, stdout=full)
    assert result.returncode == 2
    assert result.stderr == b"error: standard output: cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_descriptors(crystal, closed):
    text = "import os, sys; os.close(int(sys.argv[1])); os.execv(sys.executable, sys.argv[2:])"
    command = [sys.executable, "-c", text, str(closed), *COMMAND]
    result = run(command, "predict", "mp-formation-energy", crystal)
    assert result.returncode == 0 and b"Traceback" not in result.stderr
    asked = run(command, "predict", "mp-formation-energy", "-", input=b"")
    assert asked.returncode == 2 and b"Traceback" not in asked.stderr
