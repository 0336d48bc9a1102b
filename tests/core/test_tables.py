"""Tables in every format hold the same rows."""

import csv
import json
import math
import sys

import pytest
from rich.table import Table

from matattn.errors import MatattnError
from matattn.tables import check_output, csv_text, show, write_table

ROWS = [
    {"id": "a", "natoms": 2, "gap": 1.23456789, "flag": True, "message": "Å, and a comma"},
    {"id": "b", "natoms": None, "gap": math.nan, "flag": None, "message": ""},
]


def test_csv(tmp_path):
    write_table(tmp_path / "t.csv", ROWS)
    with open(tmp_path / "t.csv", encoding="utf-8") as lines:
        first, second = csv.DictReader(lines)
    assert first == {"id": "a", "natoms": "2", "gap": "1.23457", "flag": "True",
                     "message": "Å, and a comma"}  # fmt: skip
    assert second["gap"] == second["natoms"] == ""
    assert csv_text([]) == ""


def test_a_carriage_return_does_not_end_a_line():
    """Python's writer does not quote it, and its reader then refuses the table."""
    (row,) = csv.DictReader(csv_text([{"id": "\r", "message": "a\r\nb"}]).splitlines(True))
    assert row == {"id": "\\r", "message": "a\\r\nb"}


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_other_formats_keep_types_and_digits(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    write_table(path, ROWS)
    if suffix == "parquet":
        read = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    elif suffix == "json":
        read = json.loads(path.read_text(encoding="utf-8"))
    else:
        read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert read == [ROWS[0], ROWS[1] | {"gap": None}]


def test_a_parquet_column_without_values_holds_numbers(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path / "t.parquet", [{"id": "a", "gap": None}])
    assert str(parquet.read_table(tmp_path / "t.parquet").schema.field("gap").type) == "double"


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    with pytest.raises(MatattnError, match="t.xlsx: unknown kind of table; expected .csv, .json"):
        check_output(tmp_path / "t.xlsx")
    with pytest.raises(MatattnError, match="cannot be written"):
        check_output(tmp_path / "missing" / "t.csv")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MatattnError, match="Parquet needs pyarrow: pip install"):
        check_output(tmp_path / "t.parquet")
    check_output(tmp_path / "t.jsonl")


def long_table():
    table = Table(title="Errors")
    table.add_column("target", no_wrap=True)
    table.add_column("MAE", justify="right", overflow="ellipsis")
    table.add_row("a_long_name_of_a_target_" * 20, "0.1234 [eV/atom] :x:")
    return table


def test_a_piped_table_is_as_wide_as_it_needs(capsys):
    show(long_table())
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "a_long" in line)
    assert f" {'a_long_name_of_a_target_' * 20} │ 0.1234 [eV/atom] :x: " in row


def test_a_narrow_terminal_folds_cells(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"COLUMNS": "60", "LINES": "40", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    show(long_table())
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "".join(line[1].strip() for line in lines) == "a_long_name_of_a_target_" * 20
    assert max(map(len, lines[0])) < 60
