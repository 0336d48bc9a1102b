"""``matattn tokenize`` as a user types it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from matattn.cli import app

NACL = Path(__file__).parents[2] / "docs" / "examples" / "NaCl.cif"


def run(*arguments, given=None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=given)


def test_command_shows_pieces_and_materials(tokenized, tmp_path):
    model = tokenized[0] / "model"
    shown = run("tokenize", model, "films of GaAs were grown")
    assert shown.exit_code == 0 and "GaAs  formula" in shown.output
    path = tmp_path / "a.txt"
    path.write_text("films of ZnO\n\nfilms of CdTe\n")
    for given in (("tokenize", model, path, "--json"), ("tokenize", model, "-", "--json")):
        result = run(*given, given=path.read_text() if "-" in given else None)
        first, second = map(json.loads, result.output.splitlines())
        assert (first["line"], second["line"]) == (1, 3)
        assert second["spans"][0]["text"] == "CdTe"
        assert first["pieces"][0] == {"piece": "films", "start": 0, "end": 5}


def test_lines_end_at_newlines_only(tokenized):
    given = "films\x0bof\u2028ZnO\r\n\nCdTe\x0c"
    result = run("tokenize", tokenized[0] / "model", "-", "--json", given=given)
    found = [json.loads(line) for line in result.output.split("\n") if line]
    assert [(one["line"], one["text"]) for one in found] == [
        (1, "films\x0bof\u2028ZnO"), (3, "CdTe\x0c"),
    ]  # fmt: skip


def test_command_reads_pipes(tokenized, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("films of GaAs",))
    writer.start()
    result = run("tokenize", tokenized[0] / "model", tmp_path / "pipe", "--json")
    writer.join()
    assert json.loads(result.output)["text"] == "films of GaAs"


@pytest.mark.parametrize(
    "given, message",
    [
        ("missing.txt", "missing.txt: no such file"),
        ("Pt/C", "Pt/C: no such file; if it is a text, give it by standard input"),
        (".", ".: is a folder"),
        ("\udcff abc", "text 1: character 1 is U+DCFF"),
    ],
)
def test_command_names_what_is_no_text(tokenized, given, message):
    result = run("tokenize", tokenized[0] / "model", given)
    assert result.exit_code == 2 and message in result.stderr


def test_slashes_within_a_text(tokenized):
    assert run("tokenize", tokenized[0] / "model", "films of Pt/C").exit_code == 0


@pytest.mark.parametrize(
    "given, message",
    [(b"caf\xe9", "standard input: byte 4 is not UTF-8"), (b" \n", "no text: give a text")],
)
def test_command_names_bad_input(tokenized, given, message):
    command = [sys.executable, "-c", "from matattn.cli import main; main()", "tokenize",
               str(tokenized[0] / "model"), "-"]  # fmt: skip
    result = subprocess.run(
        command, input=given, capture_output=True, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 2
    assert message in result.stderr.decode() and "Traceback" not in result.stderr.decode()


def test_other_models_read_no_text(tokenized):
    assert run("tokenize", "mp-band-gap", "TiO2").exit_code == 2
    for command in ("predict", "explain"):
        result = run(command, tokenized[0] / "model", NACL)
        assert result.exit_code == 2
