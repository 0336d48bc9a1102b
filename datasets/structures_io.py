"""Structures with properties: checked tables and data sets, made from the rows of any source.

A row is a dictionary with ``id``, ``lattice`` 3 x 3 (rows, Å), ``Z`` (atomic numbers), ``frac``
(N x 3), any number of properties, and optionally ``split`` ("train", "val", "test"). The row of a
molecule has ``pos`` (N x 3, Å) in place of ``lattice`` and ``frac``. Properties may also stand
apart, in a dictionary under ``BESIDE``: then their names may be those of parts of a structure.
``matattn.datasets.structure_formats`` reads such rows from users' files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matattn.cache import Arrays, cached
from matattn.errors import DataError, StructureError
from matattn.files import encodable, sha256
from matattn.structures.dataset import (
    SPLITS,
    PropertyDataset,
    check_sizes,
    formula_key,
    group_split,
    random_split,
)
from matattn.structures.formats.atoms import is_periodic
from matattn.structures.items import Geometries, PackedItems
from matattn.structures.structure import validate_arrays
from matattn.text_files import parse_number, with_plain_signs
from matattn.units import Property, find_properties, truth

Row = dict[str, Any]
# (location, row) pairs, which may be made one by one, and messages about other rows, which are
# complete when all pairs were taken.
Rows = tuple[Iterable[tuple[str, Row]], list[str]]

DOUBTS = "doubts of reading"  # key of a row: why it may be another structure
BESIDE = "properties beside the structure"
# What stands for no number, in small letters.
MISSING = ("", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "null", "none", "-", "--", "?")
_FORMAT = 6  # of cached tables: raise it whenever reading or checking gives other rows


@dataclass(frozen=True)
class Table:
    """Structures that passed the checks, and one message per row that did not.

    ``columns`` holds all other entries of the rows: numbers as an array with NaN where a row has
    none, anything else as a list with None.
    """

    ids: list[str]
    locations: list[str]  # file, line and id, for messages
    sites: np.ndarray  # [n] numbers of atoms
    z: np.ndarray  # [sum of sites]
    frac: np.ndarray  # [sum of sites, 3]; of molecules the positions, Å
    lattice: np.ndarray  # [n, 3, 3] Å; of molecules zeros
    columns: dict[str, Any]
    skipped: list[str]
    doubts: list[str]  # about rows that are in the table: these may be other structures

    def formulas(self) -> list[str]:
        """Return the keys of the reduced formulas."""
        return [formula_key(z) for z in np.split(self.z, np.cumsum(self.sites)[:-1])]


def check_rows(source: str, rows: Rows) -> Table:
    """Return the table of all rows that hold a physical structure.

    Of rows with the same id, only the first is kept. Raises DataError when there is no row.
    """
    entries, bad = rows
    building = _Building()
    for where, row in entries:
        building.add(where, row)
    # Only now, as a reader adds to its messages while its rows are taken.
    skipped = [*bad, *building.skipped]
    if not building.seen:
        problem = f"; first problem: {skipped[0]}" if skipped else ""
        raise DataError(f"{source}: holds no row{problem}")
    return building.table(skipped)


class _Building:
    """A table whose rows come one after the other: of each, only arrays are kept."""

    def __init__(self) -> None:
        self.seen = 0
        self.locations: dict[str, str] = {}  # by id
        self.z: list[np.ndarray] = []
        self.coords: list[np.ndarray] = []
        self.lattice: list[np.ndarray] = []
        self.columns: dict[str, list[Any]] = {}
        self.skipped: list[str] = []
        self.doubts: list[str] = []

    def add(self, where: str, row: Row) -> None:
        """Add a row, or a message about it."""
        self.seen += 1
        try:
            identifier = encodable(str(row["id"]))
            if identifier in self.locations:
                self.skipped.append(f"{where}: duplicate id: only the first row is used")
                return
            if (lattice := _cell(row)) is None:
                raise StructureError(f"{where}: lattice is null; a molecule has pos instead")
            _check_periodicity(row, where)
            doubts = [*row.get(DOUBTS, ()), *validate_arrays(row["Z"], *_geometry(row), where)]
            z, coords = np.array(row["Z"], dtype=np.int64), _floats(_geometry(row)[0])
        except StructureError as error:
            self.skipped.append(str(error))
            return
        except (KeyError, TypeError, ValueError) as error:
            self.skipped.append(f"{where}: bad or missing value: {error}")
            return
        self.doubts += [f"{where}: {doubt}" for doubt in doubts]
        for name, value in _properties(row).items():
            column = self.columns.setdefault(name, [])
            column += [None] * (len(self.locations) - len(column))  # earlier rows without it
            column.append(value)
        self.locations[identifier] = where
        self.z.append(z)
        self.coords.append(coords)
        self.lattice.append(_floats(lattice))

    def table(self, skipped: list[str]) -> Table:
        """Return the table of all rows so far."""
        count = len(self.locations)
        columns = {}
        for name, values in self.columns.items():
            columns[name] = _column(name, [*values, *[None] * (count - len(values))])
        return Table(
            ids=list(self.locations),
            locations=list(self.locations.values()),
            sites=np.array([len(z) for z in self.z], dtype=np.int64),
            z=np.concatenate([np.empty(0, dtype=np.int64), *self.z]),
            frac=np.concatenate([np.empty((0, 3)), *self.coords]),
            lattice=_floats(self.lattice).reshape(-1, 3, 3),
            columns=columns,
            skipped=skipped,
            doubts=self.doubts,
        )


def read_table(source: str, files: Sequence[Path], read: Callable[[], Rows]) -> Table:
    """Return the checked rows of ``read()``, from matattn's cache if they are there.

    ``files`` are all files that ``read`` depends on: when their content changes, they are read
    again.
    """
    state = [(str(file), sha256(file)) for file in files]
    key = repr((_FORMAT, read.__module__, source, state))
    return _from_arrays(cached(key, lambda: _to_arrays(check_rows(source, read()))))


def make_dataset(
    name: str,
    source: str,
    table: Table,
    targets: Sequence[str],
    split: str | np.ndarray | None = "official",
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    max_sites: int | None = None,
    units: Mapping[str, str] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Make the data set of a table; arguments as in ``matattn.datasets.crystals.load``.

    ``split`` may also be an array with the split of every row.
    """
    if split is None:
        split = "official" if _split_column(table) else "random"
    rows, labels, properties, skipped = select_labels(source, table, targets, units, max_sites)
    if isinstance(split, str):
        assigned = _split(split, split_seed, table, rows, source)
        remarks = [note, _SPLIT_NOTES[split]]
    else:
        assigned, remarks = split[rows], [note]
    check_sizes(source, assigned, sizes)
    if max_sites is not None:
        remarks.append(f"Only cells of at most {max_sites} sites.")
    text = " ".join(remark.strip() for remark in remarks if remark)
    items = make_items(table, rows, labels)
    return PropertyDataset(
        name, properties, items, assigned, text, [*table.skipped, *skipped], doubts=table.doubts
    )


_SPLIT_NOTES = {
    "official": "Split as the file says; polymorphs of one formula may be in several splits.",
    "random": "Random split: polymorphs of one formula are in several splits.",
    "formula": "Split by reduced formula: no composition is in two splits.",
}


def select_labels(
    source: str,
    table: Table,
    targets: Sequence[str],
    units: Mapping[str, str] | None = None,
    max_sites: int | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[Property, ...], list[str]]:
    """Return the usable rows [n], their labels [n, T], the properties, and messages about the rest.

    Raises DataError when a target is unknown or has no column.
    """
    properties = find_properties(targets, units)
    if not table.ids:
        raise DataError(f"{source}: no usable structure; first problem: {table.skipped[0]}")
    labels = np.empty((len(table.ids), len(properties)))
    usable = np.ones(len(table.ids), dtype=bool)
    skipped: list[str] = []
    named = [targets] if isinstance(targets, str) else targets
    for index, (name, target) in enumerate(zip(named, properties, strict=True)):
        column = _find_column(name, target, table, source)
        column_values = table.columns[column]
        if target.is_class:
            column_values = [truth(value) for value in column_values]
        parsed = [_number(value) for value in column_values]
        for row in [row for row, value in enumerate(parsed) if value is None and usable[row]]:
            usable[row] = False
            text = str(table.columns[column][row])
            reason = f"{text[:40]!r}, not a number{_advice(text)}"
            skipped.append(f"{table.locations[row]}: {column or 'the value'} is {reason}")
        values = np.array(parsed, dtype=float)  # None becomes NaN
        if column in target.log10_of:
            values = np.log10(values, where=values > 0, out=np.full_like(values, np.nan))
        labels[:, index] = np.where(np.isfinite(values), values, np.nan)
    if max_sites is not None:
        usable &= table.sites <= max_sites
    has_label = np.isfinite(labels).any(axis=1)
    if (usable & has_label).any():
        names = " or ".join(target.name for target in properties)
        without = np.flatnonzero(usable & ~has_label)
        skipped += [f"{table.locations[row]}: has no usable value of {names}" for row in without]
        usable &= has_label
    rows = np.flatnonzero(usable)
    return rows, labels[rows], properties, skipped


def make_items(table: Table, rows: np.ndarray, labels: np.ndarray) -> PackedItems:
    """Return some rows of a table as structures with labels [n, T]."""
    coords = Geometries(table.sites, table.z, table.frac, table.lattice)
    return PackedItems.of(table.ids, coords, rows, labels)


_STRUCTURE = ("id", "Z", "frac", "lattice", "pos", DOUBTS)
_NO_CELL = np.zeros((3, 3))
_ARRAYS = ("sites", "z", "frac", "lattice")
_TEXTS = ("ids", "locations", "skipped", "doubts")


def _properties(row: Row) -> Row:
    """Return all of a row but its structure."""
    if BESIDE in row:
        return row[BESIDE]
    return {name: value for name, value in row.items() if name not in _STRUCTURE}


def _advice(text: str) -> str:
    """Return what to do about a text that a reader may take for a number."""
    text = with_plain_signs(text)
    if re.fullmatch(r"[+-]?\d[\d.,'\u2019\s]*", text):
        return "; write all numbers with a decimal point and without separators of thousands"
    if re.match(r"[+-]?\d+\.?\d*\s*[^\d\s.,_]+$", text):
        return "; write the number alone"
    return ""


def _geometry(row: Row) -> tuple[Any, Any]:
    """Return fractional coordinates and lattice, or a molecule's positions and None."""
    return (row["pos"], None) if "pos" in row else (row["frac"], row["lattice"])


def _check_periodicity(row: Row, where: str) -> None:
    """Refuse what may be meant as a crystal or as a molecule, as ``matattn predict`` does."""
    if BESIDE in row:  # its reader has checked that
        return
    try:
        periodic = is_periodic(row["pbc"]) if "pbc" in row else "pos" not in row
    except ValueError as error:
        raise StructureError(f"{where}: {error}") from None
    if ("pos" in row and "lattice" in row) or periodic == ("pos" in row):
        raise StructureError(
            f"{where}: a crystal has frac and a lattice, a molecule pos and no lattice (pbc false)"
        )


def _cell(row: Row) -> Any:
    """Return the lattice of a crystal, or zeros for a molecule, whatever else its row holds."""
    return _NO_CELL if "pos" in row else row["lattice"]


def _to_arrays(table: Table) -> Arrays:
    """Convert a table to arrays that need no pickle: all texts become one JSON text."""
    numbers = {k: v for k, v in table.columns.items() if isinstance(v, np.ndarray)}
    texts = {name: getattr(table, name) for name in _TEXTS}
    texts["columns"] = {k: v if k not in numbers else None for k, v in table.columns.items()}
    text = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    columns = np.array(list(numbers.values())).reshape(len(numbers), len(table.ids))
    return {name: getattr(table, name) for name in _ARRAYS} | {"columns": columns, "text": text}


def _from_arrays(arrays: Arrays) -> Table:
    texts = json.loads(arrays["text"].tobytes())
    numbers = iter(arrays["columns"])
    columns = {k: next(numbers) if v is None else v for k, v in texts["columns"].items()}
    parts = {name: arrays[name] for name in _ARRAYS} | {name: texts[name] for name in _TEXTS}
    return Table(**parts, columns=columns)


def _column(name: str, values: list[Any]) -> np.ndarray | list[Any]:
    numbers = [_number(value) for value in values if not isinstance(value, str)]
    if name.lower() == "split" or None in numbers or len(numbers) < len(values):
        return values
    return _floats(numbers)


def _number(value: Any) -> float | None:
    """Return NaN for a missing value and None for anything that is not a number.

    A text is a number if it is written as one; true and false are none.
    """
    if isinstance(value, str):
        missing = with_plain_signs(value).lower() in MISSING
        return math.nan if missing else parse_number(value)
    if isinstance(value, bool):
        return None
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isinf(number) else number


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _find_column(name: str, target: Property, table: Table, source: str) -> str:
    """Return the column that holds a target, or a quantity whose logarithm the target is.

    The one that was named comes first: a table may have several.
    """
    for column in (name, target.name, *target.columns, *target.log10_of):
        if column in table.columns:
            return column
    others = sorted(table.columns.keys() - {"formula", "spg", _split_column(table)})
    raise DataError(
        f"{source}: no column for target {target.name!r}; columns of the file: "
        f"{', '.join(others) or 'none'}"
    )


def _split_column(table: Table) -> str | None:
    """Return the column with the split of the rows, however its name is written."""
    return next((name for name in table.columns if name.lower() == "split"), None)


def _split(scheme: str, seed: int, table: Table, rows: np.ndarray, source: str) -> np.ndarray:
    if scheme == "random":
        return random_split(len(rows), seed)
    if scheme == "formula":
        formulas = table.formulas()
        return group_split([formulas[row] for row in rows], seed)
    if scheme != "official":
        raise DataError(f"data.split={scheme!r}: choose official, random or formula")
    column = table.columns.get(_split_column(table) or "", [None] * len(table.ids))
    official = ["" if column[row] is None else str(column[row]) for row in rows]
    if unknown := set(official) - {*SPLITS, ""}:
        raise DataError(
            f"{source}: split is {', '.join(sorted(unknown))} in some rows; use train, val and "
            "test, or leave it empty for rows that are not used"
        )
    split = np.array(official, dtype="<U5")
    if len(rows) and not (split == "train").any():
        raise DataError(
            f"{source}: no row has split=train; use data.split=random or data.split=formula"
        )
    return split
