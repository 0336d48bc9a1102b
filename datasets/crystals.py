"""Crystals with properties: from rows of a file to a data set, whatever the file.

A row is a dictionary with ``id``, ``lattice`` 3 x 3 (rows, Å), ``Z`` (atomic numbers), ``frac``
(N x 3), any number of properties, and optionally ``split`` ("train", "val", "test"). The row of a
molecule has ``pos`` (N x 3, Å) in place of ``lattice`` and ``frac``.
``matattn.datasets.formats`` reads such rows from users' files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matattn.cache import Arrays, cached
from matattn.datasets.formats import Row, Rows, find_files, read_rows
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
from matattn.structures.structure import tensors_from_arrays, to_data, validate_arrays
from matattn.units import Property, find_properties

if TYPE_CHECKING:
    from torch_geometric.data import Data

_FORMAT = 2  # of the kept tables: to be raised whenever reading or checking gives other rows


def load(
    name: str,
    path: str,
    targets: Sequence[str],
    split: str | None = None,
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    max_sites: int | None = None,
    units: Mapping[str, str] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read crystals from any file that ``matattn.datasets.formats`` knows.

    Args:
        name: how reports call the data.
        path: JSON lines, extended XYZ, a CSV beside structure files, or the folder of such a CSV.
        targets: properties to predict, by matattn's names or the file's; moduli in GPa become
            log10(GPa), and values that are not positive count as missing.
        split: "official" (the file's ``split`` column), "random" (seeded 80/10/10 of the rows), or
            "formula" (80/10/10 of the reduced formulas: no composition stands in two splits);
            None: official if the file has the column, else random.
        split_seed: seed of the latter two.
        sizes: rows that train, val and test must have, for published benchmarks.
        max_sites: leave out larger cells.
        units: units of properties that matattn does not know, for example {"tc": "K"}.
        note: what errors on these rows may be compared with; the split is added to it.

    Rows that cannot be used (see ``PropertyDataset.skipped``) are left out. Raises DataError when
    the file, a target or the split column is missing, when the sizes differ, or when no usable row
    is left.
    """
    table = read_table(path, find_files(Path(path)), lambda: read_rows(Path(path)))
    if "" in table.columns:  # the values of a CSV without a header
        if len(names := [targets] if isinstance(targets, str) else list(targets)) != 1:
            raise DataError(
                f"{path}: has one column of values and no header; give one name, "
                f"'data.targets=[NAME]', not {names}"
            )
        table.columns[names[0]] = table.columns.pop("")
    return make_dataset(
        name, path, table, targets, split, split_seed, sizes, max_sites, units, note
    )


@dataclass(frozen=True)
class Table:
    """Crystals that passed the checks, and one message per row that did not.

    ``columns`` holds all other entries of the rows: numbers as an array with NaN where a row has
    none, anything else as a list with None.
    """

    ids: list[str]
    places: list[str]  # file, line and id, for messages
    sites: np.ndarray  # [n] numbers of atoms
    z: np.ndarray  # [sum of sites]
    frac: np.ndarray  # [sum of sites, 3]; of molecules the positions, Å
    lattice: np.ndarray  # [n, 3, 3] Å; of molecules zeros
    columns: dict[str, Any]
    skipped: list[str]

    def formulas(self) -> list[str]:
        """Keys of the reduced formulas."""
        return [formula_key(z) for z in np.split(self.z, np.cumsum(self.sites)[:-1])]


def check_rows(source: str, rows: Rows) -> Table:
    """The rows that hold a physical crystal, as a table; each id counts once."""
    found, skipped = rows
    if not found:
        problem = f"; first problem: {skipped[0]}" if skipped else ""
        raise DataError(f"{source}: holds no row{problem}")
    kept: dict[str, tuple[str, Row]] = {}
    skipped = list(skipped)
    for where, row in found:
        try:
            identifier = encodable(str(row["id"]))
            if identifier in kept:
                skipped.append(f"{where}: this id stands twice; the first row counts")
                continue
            if _cell(row) is None:
                raise StructureError(f"{where}: lattice is null; a molecule has pos instead")
            validate_arrays(row["Z"], *_geometry(row), where)
            kept[identifier] = where, row
        except StructureError as error:
            skipped.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            skipped.append(f"{where}: bad or missing value: {error}")
    rows_kept = [row for _, row in kept.values()]
    names = {name: None for row in rows_kept for name in row if name not in _STRUCTURE}
    sites = np.array([len(row["Z"]) for row in rows_kept], dtype=np.int64)
    return Table(
        ids=list(kept),
        places=[where for where, _ in kept.values()],
        sites=sites,
        z=np.array([z for row in rows_kept for z in row["Z"]], dtype=np.int64),
        frac=np.concatenate([np.empty((0, 3)), *(_floats(_geometry(r)[0]) for r in rows_kept)]),
        lattice=_floats([_cell(row) for row in rows_kept]).reshape(-1, 3, 3),
        columns={name: _column(name, rows_kept) for name in names},
        skipped=skipped,
    )


def read_table(source: str, files: Sequence[Path], read: Callable[[], Rows]) -> Table:
    """The checked rows that ``read`` gives, kept in matattn's cache if that took long.

    ``files`` are all that ``read`` depends on; a change of their content is noticed.
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
    """The data set of a table, with the arguments of ``load``; ``split`` may be one of its rows."""
    if split is None:
        split = "official" if "split" in table.columns else "random"
    rows, labels, properties, skipped = labelled(source, table, targets, units, max_sites)
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
    return PropertyDataset(name, properties, items, assigned, text, [*table.skipped, *skipped])


_SPLIT_NOTES = {
    "official": "Split as the file says; polymorphs of one formula may stand in several splits.",
    "random": "Random split: polymorphs of one formula stand in several splits.",
    "formula": "Split by reduced formula: no composition stands in two splits.",
}


def labelled(
    source: str,
    table: Table,
    targets: Sequence[str],
    units: Mapping[str, str] | None = None,
    max_sites: int | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[Property, ...], list[str]]:
    """Usable rows [n], their labels [n, T], the properties, and messages about the other rows.

    Raises DataError when a target is unknown or has no column.
    """
    properties = find_properties(targets, units)
    if not table.ids:
        raise DataError(f"{source}: no usable crystal; first problem: {table.skipped[0]}")
    labels = np.empty((len(table.ids), len(properties)))
    usable = np.ones(len(table.ids), dtype=bool)
    skipped: list[str] = []
    for number, target in enumerate(properties):
        column = _find_column(target, table, source)
        parsed = [_number(value) for value in table.columns[column]]
        for row in [row for row, value in enumerate(parsed) if value is None]:
            usable[row] = False
            shown = str(table.columns[column][row])[:40]
            skipped.append(f"{table.places[row]}: {column} is {shown!r}, not a number")
        values = np.array(parsed, dtype=float)  # None becomes NaN
        if column in target.log10_of:
            values = np.log10(values, where=values > 0, out=np.full_like(values, np.nan))
        labels[:, number] = np.where(np.isfinite(values), values, np.nan)
    if max_sites is not None:
        usable &= table.sites <= max_sites
    known = np.isfinite(labels).any(axis=1)
    if (usable & known).any() and (empty := int((usable & ~known).sum())):
        skipped.append(f"{source}: rows that have none of the labels: {empty}")
        usable &= known
    rows = np.flatnonzero(usable)
    return rows, labels[rows], properties, skipped


def make_items(table: Table, rows: np.ndarray, labels: np.ndarray) -> list[Data]:
    """PyG ``Data`` of some rows of a table, with their labels [n, T]."""
    ends = np.cumsum(table.sites)
    items = []
    for row, y in zip(rows, labels, strict=True):
        atoms = slice(ends[row] - table.sites[row], ends[row])
        cell = table.lattice[row] if table.lattice[row].any() else None
        tensors = tensors_from_arrays(table.z[atoms], table.frac[atoms], cell)
        items.append(to_data(tensors, y, table.ids[row]))
    return items


_STRUCTURE = ("id", "Z", "frac", "lattice", "pos")
_NO_CELL = np.zeros((3, 3))
_ARRAYS = ("sites", "z", "frac", "lattice")
_TEXTS = ("ids", "places", "skipped")


def _geometry(row: Row) -> tuple[Any, Any]:
    """Fractional coordinates and lattice, or a molecule's positions and None."""
    return (row["pos"], None) if "pos" in row else (row["frac"], row["lattice"])


def _cell(row: Row) -> Any:
    """The lattice of a crystal; of a molecule zeros, whatever else its row holds."""
    return _NO_CELL if "pos" in row else row["lattice"]


def _to_arrays(table: Table) -> Arrays:
    """A table in arrays that need no pickle: the texts are one JSON text."""
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


def _column(name: str, rows: list[Row]) -> np.ndarray | list[Any]:
    values = [row.get(name) for row in rows]
    numbers = [_number(value) for value in values if not isinstance(value, str)]
    if name == "split" or None in numbers or len(numbers) < len(values):
        return values
    return _floats(numbers)


def _number(value: Any) -> float | None:
    """NaN for a missing value, None for what is no number."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _find_column(target: Property, table: Table, source: str) -> str:
    """The column that holds a target, or a quantity whose logarithm it is."""
    for column in (target.name, *target.columns, *target.log10_of):
        if column in table.columns:
            return column
    others = sorted(table.columns.keys() - {"formula", "spg", "split"})
    raise DataError(
        f"{source}: no column for target {target.name!r}; columns of the file: "
        f"{', '.join(others) or 'none'}"
    )


def _split(scheme: str, seed: int, table: Table, rows: np.ndarray, source: str) -> np.ndarray:
    if scheme == "random":
        return random_split(len(rows), seed)
    if scheme == "formula":
        formulas = table.formulas()
        return group_split([formulas[row] for row in rows], seed)
    if scheme != "official":
        raise DataError(f"data.split={scheme!r}: choose official, random or formula")
    column = table.columns.get("split", [None] * len(table.ids))
    official = ["" if column[row] is None else str(column[row]) for row in rows]
    if unknown := set(official) - {*SPLITS, ""}:
        raise DataError(
            f"{source}: split is {', '.join(sorted(unknown))} in some rows; use train, val and "
            "test, or leave it empty for rows that are not used"
        )
    split = np.array(official, dtype="<U5")
    if len(rows) and not (split == "train").any():
        raise DataError(
            f"{source}: no row says split: train; use data.split=random or data.split=formula"
        )
    return split
