"""Rows of crystals or molecules from the files that users have.

- JSON lines, plain or gzipped: one row a line, as ``matattn.datasets.structures_io`` describes it,
  or with pymatgen's ``structure`` in place of ``lattice``, ``Z`` and ``frac``.
- A CSV with the columns ``id`` and the properties, beside one structure file per id; or CGCNN's and
  ALIGNN's ``id_prop.csv``, without a header: id, value. A folder means the CSV in it.
- Extended XYZ with the properties (and ``id`` and ``split``) in the comment line of each frame.

The row of a molecule, a structure that is periodic nowhere, has ``pos`` (N x 3, Å) in place of
``lattice`` and ``frac``.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Molecule

from matattn.datasets.structures_io import Row, Rows
from matattn.errors import DataError, StructureError
from matattn.parallel import parallel_map
from matattn.structures.files import is_structure_file, read
from matattn.structures.formats.atoms import NUMBERS, Atoms
from matattn.structures.formats.extended_xyz import Frame, read_frames
from matattn.structures.formats.pymatgen_json import read_sites
from matattn.structures.structure import validate
from matattn.text_files import without_compression

# What may follow an id in the name of its structure file.
_ENDINGS = [
    ending + compression
    for compression in ("", ".gz", ".bz2", ".xz")
    for ending in ("", ".cif", ".vasp", ".poscar", ".extxyz", ".xyz", ".json", ".xsf", ".cssr",
                   "/POSCAR", "/CONTCAR", "/vasprun.xml", "/geometry.in")
]  # fmt: skip
_PARTS = ("Z", "frac", "lattice", "pos")  # of a structure; no names of properties
_MISSING = ("", "na", "n/a", "nan", "null", "none")
_WORTH_A_PROCESS = 100  # structure files, about a second of parsing


def find_files(path: Path) -> list[Path]:
    """List all files that ``read_rows(path)`` reads, the table itself first.

    Raises DataError when there is no such table.
    """
    table = _find_table(path)
    if table.suffix != ".csv":
        return [table]
    entries, _ = _read_csv(table)
    files = (_structure_file(table.parent, row["id"]) for _, row in entries)
    return [table, *(file for file in files if file)]


def read_rows(path: Path) -> Rows:
    """Read all rows of ``path``; returns also messages about those that cannot be read."""
    table = _find_table(path)
    try:
        if table.suffix == ".csv":
            return _with_structures(table, *_read_csv(table))
        if without_compression(table.name).endswith((".xyz", ".extxyz")):
            return _read_extxyz(table)
        return _read_lines(table)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read: {error}") from error


def pymatgen_row(structure: Any, where: str) -> Row:
    """Convert pymatgen's dictionary of a structure or molecule to the structure part of a row.

    Raises StructureError for partial occupancy and damaged entries; TypeError when it is no
    dictionary.
    """
    if not isinstance(structure, Mapping):
        raise TypeError(f"expected a structure of pymatgen, got {type(structure).__name__}")
    try:
        species, coords, cell, _ = read_sites(structure)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StructureError(f"{where}: {error}") from None
    for number, occupancies in enumerate(species, start=1):
        if set(occupancies.values()) != {1}:
            raise StructureError(f"{where}: site {number} has partial occupancy")
    z = [NUMBERS[element] for (element,) in species]
    if cell is None:
        return {"Z": z, "pos": coords}
    return {"Z": z, "frac": coords, "lattice": cell.tolist()}


def _find_table(path: Path) -> Path:
    if path.is_dir():
        tables = [path / "id_prop.csv"]
        if not tables[0].is_file():
            tables = sorted(path.glob("*.csv"))
        if len(tables) != 1:
            raise DataError(
                f"{path}: is a folder with {', '.join(t.name for t in tables) or 'no CSV file'}; "
                "give data.path=FILE.csv, a table with id and properties beside the structure files"
            )
        path = tables[0]
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; give data.path=FILE, or set MATATTN_DATA to the folder of"
            " data sets"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    is_xyz = without_compression(path.name).endswith((".xyz", ".extxyz"))
    if not is_xyz and not path.name.endswith((".csv", ".jsonl", ".jsonl.gz")):
        raise DataError(
            f"{path}: unknown file type; expected .jsonl, .jsonl.gz, .csv, .extxyz or a folder"
        )
    return path


def _read_lines(path: Path) -> Rows:
    rows, bad = [], []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                where = f"{path}:{number} ({row['id']})"
            except (ValueError, KeyError, TypeError, RecursionError):
                bad.append(f"{path}:{number}: not a JSON object with an id")
                continue
            try:
                if "structure" in row:
                    row |= pymatgen_row(row.pop("structure"), where)
                rows.append((where, row))
            except StructureError as error:
                bad.append(str(error))
            except (KeyError, TypeError, ValueError) as error:
                bad.append(f"{where}: structure is not pymatgen's: {error!r}")
    return rows, bad


def _read_csv(path: Path) -> Rows:
    """Read the lines of a CSV as rows without structures; an unnamed value column is called ""."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    numbered = [(f"{path}:{n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
    first = numbered[0][1] if numbered else ""
    separator = max(",;\t", key=first.count)
    if path.name == "id_prop.csv" and not first.lower().startswith("id"):
        names = ["id", ""]
    else:
        names = _header(*numbered.pop(0), separator) if numbered else ["id"]
    rows: list[tuple[str, Row]] = []
    bad: list[str] = []
    for where, line in numbered:
        try:
            cells = _cells(line, separator)
        except csv.Error as error:  # a line of its own, so that an open quote harms no other row
            bad.append(f"{where}: not a line of a CSV file: {error}")
            continue
        if len(cells) != len(names):
            bad.append(f"{where}: has {len(cells)} columns; expected {len(names)}")
        elif any(cells):
            row = {name: _value(cell) for name, cell in zip(names, cells, strict=True)}
            row["id"] = cells[names.index("id")]
            rows.append((f"{where} ({row['id']})", row))
    return rows, bad


def _cells(line: str, separator: str) -> list[str]:
    (cells,) = csv.reader([line], delimiter=separator, strict=True)
    return [cell.strip() for cell in cells]


def _header(where: str, line: str, separator: str) -> list[str]:
    try:
        cells = _cells(line, separator)
    except csv.Error as error:
        raise DataError(f"{where}: not a line of a CSV file: {error}") from error
    names = ["id" if cell.lower() == "id" else cell for cell in cells]
    if "id" not in names:
        raise DataError(
            f"{where}: the first line must name the columns, one of them 'id'; it has "
            f"{', '.join(map(repr, cells))}"
        )
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{where}: duplicate column {', '.join(map(repr, duplicates))}; give every column its "
            "own name"
        )
    return names


def _value(cell: str) -> float | str | None:
    if cell.lower() in _MISSING:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def _structure_file(folder: Path, identifier: str) -> Path | None:
    for ending in _ENDINGS:
        file = folder / f"{identifier}{ending}"
        try:
            if identifier and is_structure_file(file) and file.is_file():
                return file
        except (OSError, ValueError):  # an id that no file name can hold
            return None
    return None


def _with_structures(table: Path, entries: list[tuple[str, Row]], bad: list[str]) -> Rows:
    """Add the structures from the files beside the table to its rows."""
    files = []
    with_file = []
    for where, row in entries:
        if file := _structure_file(table.parent, row["id"]):
            files.append(file)
            with_file.append((where, row))
        else:
            expected = f"{row['id'] or 'ID'}.cif, .vasp or .extxyz"
            bad.append(f"{where}: no structure file {expected} in {table.parent}")
    rows = []
    structures = parallel_map(
        _read_structure, files, "structure files", worth_a_process=_WORTH_A_PROCESS
    )
    for (where, row), structure in zip(with_file, structures, strict=True):
        if isinstance(structure, str):
            bad.append(f"{where}: {structure}")
        else:
            rows.append((where, row | structure))
    return rows, bad


def _read_structure(file: Path) -> Row | str:
    """Return the structure part of a row, or a message about what is wrong with the file."""
    try:
        structures = read(file)
        if len(structures) != 1:
            return f"{file}: holds {len(structures)} structures; expected one"
        (structure,) = structures
        if isinstance(structure, StructureError):
            return str(structure)
        validate(structure, str(file))
    except StructureError as error:
        return str(error)
    z = [site.specie.Z for site in structure]
    if isinstance(structure, Molecule):
        return {"Z": z, "pos": structure.cart_coords}
    return {"Z": z, "frac": structure.frac_coords, "lattice": structure.lattice.matrix}


def _read_extxyz(path: Path) -> Rows:
    rows, bad = [], []
    for frame in _frames(path):
        where = f"{path}:{frame.line} (frame {frame.number})"
        if isinstance(frame.atoms, ValueError):
            bad.append(f"{where}: {frame.atoms}")
        else:
            row = {"id": f"{_stem(path)}:{frame.number}"}
            row |= {name: value for name, value in frame.info.items()
                    if np.ndim(value) == 0 and name not in _PARTS} | _row(frame.atoms)  # fmt: skip
            rows.append((where, row))
    return rows, bad


def _frames(path: Path) -> Iterator[Frame]:
    try:
        yield from read_frames(path)
    except (ValueError, LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _stem(path: Path) -> str:
    return Path(without_compression(path.name)).stem


def _row(atoms: Atoms) -> Row:
    if atoms.cell is None:
        return {"Z": atoms.z, "pos": atoms.pos}
    frac = np.linalg.solve(atoms.cell.T, atoms.pos.T).T
    return {"Z": atoms.z, "frac": frac, "lattice": atoms.cell}
