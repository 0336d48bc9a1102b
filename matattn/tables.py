"""Tables for people, on the standard output, and for programs: CSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matattn.errors import MatattnError
from matattn.files import atomic_path, encodable, write_text

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
_WIDEST = 1_000_000  # characters: wider than any table
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def show(table: Table) -> None:
    """Print a table to the standard output with every cell whole, its text taken as it is.

    On a terminal that is too narrow, cells are folded. Elsewhere the table is as wide as it needs.
    """
    from rich.console import Console

    for column in table.columns:
        column.overflow, column.no_wrap = "fold", False
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        whole = console.options.update_width(_WIDEST)
        console.width = console.measure(table, options=whole).maximum
    console.print(table)


def check_output(path: Path) -> None:
    """Raise MatattnError if ``write_table`` could not write there, to know it before long work."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise MatattnError(f"{path}: cannot be written (a folder, or in one that is missing)")
    if path.suffix.lower() not in SUFFIXES:
        raise MatattnError(f"{path}: unknown kind of table; expected {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MatattnError(f"{path}: Parquet needs pyarrow: pip install 'matattn[data]'")


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with equal keys atomically, in the format of the suffix.

    CSV keeps 6 significant digits, the other formats all. A value that is missing, NaN or infinite
    becomes an empty cell or null. Raises WriteError.
    """
    match path.suffix.lower():
        case ".csv":
            write_text(path, csv_text(rows))
        case ".json":
            lines = ",\n".join(_json_line(row) for row in rows)
            write_text(path, f"[\n{lines}\n]\n")
        case ".jsonl":
            write_text(path, "".join(f"{_json_line(row)}\n" for row in rows))
        case ".parquet":
            _write_parquet(path, rows)


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with a header; "" without rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if rows:
        writer.writeheader()
    for row in map(_plain, rows):
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def _json_line(row: Row) -> str:
    return json.dumps(_plain(row), ensure_ascii=False)


def _plain(row: Row) -> Row:
    return {key: _plain_value(value) for key, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([_plain(row) for row in rows])
    # A column without any value has no type; only numbers can be missing, so it holds numbers.
    fields = [
        pyarrow.field(column.name, pyarrow.float64()) if column.type == pyarrow.null() else column
        for column in table.schema
    ]
    with atomic_path(path) as partial:
        pyarrow.parquet.write_table(table.cast(pyarrow.schema(fields)), partial)
