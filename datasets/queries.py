"""Answers of live databases, kept as JSON lines so that runs can be repeated without a network."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matattn.datasets.structure_formats import read_rows
from matattn.datasets.structures_io import Row, Rows, Table, read_table
from matattn.errors import DataError
from matattn.files import atomic_path, write_json


def answer(
    folder: str,
    request: Mapping[str, Any],
    ask: Callable[[], Iterable[Row]],
    command: str,
    download: bool,
) -> tuple[str, Table]:
    """Return the file that holds the answer to ``request``, and its checked rows.

    ``ask`` is called only if there is no such file and ``download`` is true. A row that it cannot
    turn into a crystal has the reason in ``problem``. The request is written beside the answer.
    Raises DataError when there is no such file and ``download`` is false.
    """
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
    file = Path(folder) / f"{digest}.jsonl.gz"
    if not file.is_file():
        if not download:
            raise DataError(
                f"{file}: no stored answer to this query; fetch it with: {command} "
                "data.download=true (or set MATATTN_DATA to the folder of data sets)"
            )
        rows = list(ask())
        if not rows:
            raise DataError(f"the database has no entry for {json.dumps(request)}")
        write_json(file.with_name(f"{digest}.query.json"), request)
        with atomic_path(file) as partial, gzip.open(partial, "wt", encoding="utf-8") as text:
            text.writelines(json.dumps(row) + "\n" for row in rows)
    return str(file), read_table(str(file), [file], lambda: _read(file))


def _read(file: Path) -> Rows:
    rows, bad = read_rows(file)
    return _without_problems(rows, bad), bad


def _without_problems(rows: Iterable[tuple[str, Row]], bad: list[str]) -> Iterator[tuple[str, Row]]:
    for where, row in rows:
        if "problem" in row:
            bad.append(f"{where}: {row['problem']}")
        else:
            yield where, row
