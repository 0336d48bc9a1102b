"""Features of structures as a table: a row per structure, atom or pair."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from matattn.errors import MatattnError
from matattn.files import encodable, write_bytes
from matattn.tables import SUFFIXES, Row, check_output, write_table


def check(path: Path) -> None:
    """Raise MatattnError if ``write`` could not write there, to know it before long work."""
    if path.suffix.lower() == ".npz" and path.absolute().parent.is_dir() and not path.is_dir():
        return
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join((*SUFFIXES, ".npz"))
        raise MatattnError(f"{path}: unknown kind of table; expected {known}")
    check_output(path)


def write(path: Path, rows: Sequence[Row], fingerprint: str) -> None:
    """Write rows of ``Predictor.embed`` with id and path; raises WriteError.

    ``fingerprint`` is that of the model (``bundle.fingerprint``), which a file .npz keeps.

    A table has the columns f0, f1, ... Of atoms or pairs it has a row for each, named in ``atom``
    or ``pair`` (from 1). A file .npz has the array ``features`` [rows, F], NaN where there are
    none, an array for every other column, and the model's fingerprint in ``model``.
    """
    if path.suffix.lower() == ".npz":
        write_bytes(path, _arrays(rows, fingerprint))
    else:
        write_table(path, table(rows))


def table(rows: Sequence[Row]) -> list[Row]:
    """Return rows with a column for each feature, and with a row for each atom or pair."""
    size = _size(rows)
    made = []
    for described, features in _parts(rows):
        values = [None] * size if features is None else features.tolist()
        end = {key: described.pop(key) for key in ("status", "message")}
        made.append(described | {f"f{n}": value for n, value in enumerate(values)} | end)
    return made


def _size(rows: Sequence[Row]) -> int:
    """Return the number of features; 0 if no structure has any."""
    return next((row["features"].shape[1] for row in rows if row["features"] is not None), 0)


def _parts(rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray | None]]:
    """Yield what is said of each structure, atom or pair, and its features [F]."""
    key = next((key for key in ("atom", "pair") if rows and key in rows[0]), None)
    for row in rows:
        described, features = {k: v for k, v in row.items() if k != "features"}, row["features"]
        if features is None:
            yield described | ({key: ""} if key else {}), None
            continue
        for number, values in enumerate(features):
            yield described | ({key: row[key][number]} if key else {}), values


def _arrays(rows: Sequence[Row], fingerprint: str) -> bytes:
    parts = list(_parts(rows))
    features = np.full((len(parts), _size(rows)), np.nan, dtype=np.float32)
    for number, (_, values) in enumerate(parts):
        if values is not None:
            features[number] = values
    arrays = {"features": features, "model": np.array(fingerprint)}
    for key in parts[0][0]:
        column = [described[key] for described, _ in parts]
        if key == "natoms":
            arrays[key] = np.array([0 if value is None else value for value in column])
        else:
            arrays[key] = np.array([encodable(str(value)) for value in column])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
