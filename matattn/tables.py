"""Tables for people and programs: CSV, JSON, JSON lines, Parquet, by the suffix of the file."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matattn.errors import MatattnError
from matattn.files import atomic_path, encodable, write_text

Row = dict[str, Any]
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def check_output(path: Path) -> None:
    """Raise MatattnError if ``write_table`` could not write there: to be known before long work."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise MatattnError(f"{path}: cannot be written (a folder, or in one that is missing)")
    if path.suffix.lower() not in SUFFIXES:
        raise MatattnError(f"{path}: unknown kind of table; expected {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MatattnError(f"{path}: Parquet needs pyarrow: pip install 'matattn[data]'")


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with equal keys atomically, in the format of the suffix.

    CSV has 6 significant digits, the others all. A value that is missing, NaN or infinite is an
    empty cell or null. Raises WriteError.
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
    """The rows as CSV with a header; "" without rows."""
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
    # A column without any value has no type of its own: numbers are all that may be missing.
    fields = [
        pyarrow.field(column.name, pyarrow.float64()) if column.type == pyarrow.null() else column
        for column in table.schema
    ]
    with atomic_path(path) as partial:
        pyarrow.parquet.write_table(table.cast(pyarrow.schema(fields)), partial)
