"""Crystals with properties from a JSON-lines file.

One crystal a line: ``id``, ``lattice`` 3 x 3 (rows, Å), ``Z`` (atomic numbers), ``frac`` (N x 3),
any number of properties, and optionally ``split`` ("train", "val", "test") and ``formula``. The
file may be gzipped. ``data=mp2018_subset`` and ``data=crystals data.path=FILE`` read it.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matattn.dataset import SPLITS, PropertyDataset, formula_key, group_split, random_split
from matattn.errors import DataError, StructureError
from matattn.structure import tensors_from_arrays, to_data, validate_arrays
from matattn.units import Property, find_properties

if TYPE_CHECKING:
    from torch_geometric.data import Data

Row = dict[str, Any]


def load(
    name: str,
    path: str,
    targets: Sequence[str],
    split: str = "official",
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    max_sites: int | None = None,
    units: Mapping[str, str] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read a JSON-lines file of crystals.

    Args:
        name: how reports call the data.
        path: the file, plain or ``.gz``.
        targets: properties to predict, by matattn's names or the file's; moduli in GPa become
            log10(GPa), and values that are not positive count as missing.
        split: "official" (the file's ``split`` column), "random" (seeded 80/10/10 of the rows), or
            "formula" (80/10/10 of the reduced formulas: no composition stands in two splits).
        split_seed: seed of the latter two.
        sizes: rows that train, val and test must have, for published benchmarks.
        max_sites: leave out larger cells.
        units: units of properties that matattn does not know, for example {"tc": "K"}.
        note: what errors on these rows may be compared with; the split is added to it.

    Rows that cannot be used (see ``PropertyDataset.skipped``) are left out. Raises DataError when
    the file, a target or the split column is missing, when the sizes differ, or when no usable row
    is left.
    """
    rows, skipped = _read_rows(Path(path))
    items, kept, properties = from_rows(path, rows, skipped, targets, units, max_sites)
    assigned = _split(split, split_seed, kept, path)
    check_sizes(path, assigned, sizes)
    remarks = [note, _SPLIT_NOTES[split]]
    if max_sites is not None:
        remarks.append(f"Only cells of at most {max_sites} sites.")
    text = " ".join(remark.strip() for remark in remarks if remark)
    return PropertyDataset(name, properties, items, assigned, text, skipped)


_SPLIT_NOTES = {
    "official": "Split as the file says; polymorphs of one formula may stand in several splits.",
    "random": "Random split: polymorphs of one formula stand in several splits.",
    "formula": "Split by reduced formula: no composition stands in two splits.",
}


def from_rows(
    source: str,
    rows: Sequence[tuple[str, Row]],
    skipped: list[str],
    targets: Sequence[str],
    units: Mapping[str, str] | None = None,
    max_sites: int | None = None,
) -> tuple[list[Data], list[Row], tuple[Property, ...]]:
    """Items with labels, the rows they came from, and the properties, of (place, row) pairs.

    A row that cannot be used adds its reason to ``skipped``. Raises DataError when a target is
    unknown or has no column.
    """
    if not rows:
        problem = f"; first problem: {skipped[0]}" if skipped else ""
        raise DataError(f"{source}: holds no row{problem}")
    properties = find_properties(targets, units)
    columns = [_column(target, rows, source) for target in properties]
    items: list[Data] = []
    kept: list[Row] = []
    seen: set[str] = set()
    for where, row in rows:
        try:
            if str(row["id"]) in seen:
                skipped.append(f"{where}: this id stands twice; the first row counts")
                continue
            if max_sites is not None and len(row["Z"]) > max_sites:
                continue
            validate_arrays(row["Z"], row["frac"], row["lattice"], where)
            labels = [
                _label(row.get(column), target, column)
                for column, target in zip(columns, properties, strict=True)
            ]
        except StructureError as error:
            skipped.append(str(error))
            continue
        except (KeyError, TypeError, ValueError) as error:
            skipped.append(f"{where}: bad or missing value: {error}")
            continue
        tensors = tensors_from_arrays(row["Z"], row["frac"], row["lattice"])
        items.append(to_data(tensors, labels, str(row["id"])))
        kept.append(row)
        seen.add(str(row["id"]))
    return items, kept, properties


def check_sizes(source: str, split: np.ndarray, sizes: Sequence[int] | None) -> None:
    """Raise DataError unless train, val and test have the given numbers of rows."""
    found = [int((split == name).sum()) for name in SPLITS]
    if sizes is not None and found != list(sizes):
        raise DataError(
            f"{source}: train/val/test have {found} rows, the benchmark has {list(sizes)}: another "
            "version of the data, or rows that could not be used"
        )


def _read_rows(path: Path) -> tuple[list[tuple[str, Row]], list[str]]:
    """(place, row) of every line, and a message for every line that is not a JSON object."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; give data.path=FILE, or set MATATTN_DATA to the folder of"
            " data sets"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    opener = gzip.open if path.suffix == ".gz" else open
    rows, bad = [], []
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    rows.append((f"{path}:{number} ({row['id']})", row))
                except (ValueError, KeyError, TypeError):
                    bad.append(f"{path}:{number}: not a JSON object with an id")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return rows, bad


def _column(target: Property, rows: Sequence[tuple[str, Row]], path: str) -> str:
    """The column of the file that holds a target, or a quantity whose logarithm it is."""
    present = {key for _, row in rows for key in row}
    for column in (target.name, *target.columns, *target.log10_of):
        if column in present:
            return column
    numeric = sorted(present - {"id", "formula", "spg", "lattice", "Z", "frac", "split"})
    raise DataError(
        f"{path}: no column for target {target.name!r}; columns of the file: {', '.join(numeric)}"
    )


def _label(value: Any, target: Property, column: str) -> float:
    number = math.nan if value is None else float(value)
    if column in target.log10_of:
        return math.log10(number) if number > 0 else math.nan
    return number if math.isfinite(number) else math.nan


def _split(scheme: str, seed: int, rows: list[Row], path: str) -> np.ndarray:
    if scheme == "random":
        return random_split(len(rows), seed)
    if scheme == "formula":
        return group_split([formula_key(row["Z"]) for row in rows], seed)
    if scheme != "official":
        raise DataError(f"data.split={scheme!r}: choose official, random or formula")
    official = [row.get("split") or "" for row in rows]
    if unknown := {str(name) for name in official} - {*SPLITS, ""}:
        raise DataError(
            f"{path}: split is {', '.join(sorted(unknown))} in some rows; use train, val and "
            "test, or leave it empty for rows that are not used"
        )
    split = np.array(official, dtype="<U5")
    if rows and not (split == "train").any():
        raise DataError(
            f"{path}: no row says split: train; use data.split=random or data.split=formula"
        )
    return split
