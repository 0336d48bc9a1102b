"""ASE's rows in LMDB files (.aselmdb), as the Open Catalyst Project and OMat24 publish them.

A row is JSON, compressed by zlib, under its number. Older files of the same project hold pickles in
the same place; these are refused.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matattn.structures.formats.lmdb_pages import read_entries
from matattn.structures.formats.pymatgen_json import Located, records_of
from matattn.structures.formats.record import Record

LONGEST_ROW = 2**24  # bytes of JSON: a structure of 50,000 atoms with forces has about as many


def parse(path: Path) -> Iterator[Record]:
    """Return the structures of a file, with its name and the number of a row as id."""
    return records_of(read_rows(path))


def read_rows(path: Path) -> Iterator[Located]:
    """Yield the rows of a file, one at a time, as dictionaries.

    Raises ValueError when it is no LMDB file, and OSError when it cannot be read.
    """
    found = False
    for key, value in read_entries(path):
        if isinstance(value, ValueError) and not key:
            found = True
            yield "", str(path), value
        elif key.isdigit():  # not the counters of the database
            found = True
            number = key.decode()
            place = f"{path}, row {number}"
            try:
                if isinstance(value, ValueError):
                    raise value
                yield f"{path.stem}:{number}", place, decode(value)
            except ValueError as error:
                yield f"{path.stem}:{number}", place, error
    if not found:
        raise ValueError("has no row under a number; expected a database of ASE in LMDB")


def decode(value: bytes) -> dict[str, Any]:
    """Return the row of a value; ValueError, saying what is wrong, if it holds none."""
    if value.startswith(b"\x80"):
        raise ValueError("is a pickle, which can run any program; convert it to .aselmdb")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(value, LONGEST_ROW)
    except zlib.error as error:
        raise ValueError(f"cannot be unpacked, is damaged: {error}") from None
    if unpacking.unconsumed_tail:
        raise ValueError(f"unpacks to more than {LONGEST_ROW / 2**20:.0f} MiB")
    if not unpacking.eof:
        raise ValueError("is cut off")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a row of ASE, got {type(row).__name__}")
    return row
