"""Rows of crystals or molecules from the files that users have.

- JSON lines: one row a line, as ``matattn.datasets.structures_io`` describes it, or with pymatgen's
  ``structure`` in place of ``lattice``, ``Z`` and ``frac``.
- A CSV with the columns ``id`` and the properties, beside one structure file per id; or CGCNN's and
  ALIGNN's ``id_prop.csv``, without a header: id, value. A folder means the CSV in it. Separators
  are commas, semicolons or tabs.
- Extended XYZ with the properties (and ``id`` and ``split``) in the comment line of each frame.
- Parquet, and ASE's LMDB (``matattn.datasets.binary_tables``), or a folder of such files.

The former two may be compressed (.gz, .bz2, .xz). The row of a molecule, a structure that is
periodic nowhere, has ``pos`` (N x 3, Å) in place of ``lattice`` and ``frac``.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from lzma import LZMAError
from pathlib import Path

import numpy as np
from pymatgen.core import Molecule

from matattn.datasets import binary_tables
from matattn.datasets.binary_tables import atoms_row, pymatgen_row
from matattn.datasets.structures_io import BESIDE, DOUBTS, MISSING, Row, Rows
from matattn.errors import DataError, StructureError
from matattn.parallel import parallel_map
from matattn.structures.files import is_structure_file, read
from matattn.structures.formats.extended_xyz import read_frames
from matattn.structures.remarks import doubts_of
from matattn.structures.structure import validate
from matattn.text_files import (
    open_bytes,
    parse_number,
    read_lines,
    read_text,
    with_plain_signs,
    without_compression,
)

# What may follow an id in the name of its structure file.
_ENDINGS = [
    ending + compression
    for compression in ("", ".gz", ".bz2", ".xz")
    for ending in ("", ".cif", ".vasp", ".poscar", ".extxyz", ".xyz", ".json", ".xsf", ".cssr",
                   "/POSCAR", "/CONTCAR", "/vasprun.xml", "/geometry.in")
]  # fmt: skip
_TABLES = (".csv", ".jsonl", ".xyz", ".extxyz", *binary_tables.READERS)
_THOUSAND = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")  # or a number with a decimal mark
_BELOW_THOUSAND = re.compile(r"[+-]?[1-9]\d{0,2}|[+-]?\d+(\.\d{3}){2,}")  # or one of millions
_DAMAGED = (OSError, EOFError, ValueError, LZMAError, zlib.error)
_WORTH_A_PROCESS = 100  # structure files, about a second of parsing


def find_files(path: Path) -> list[Path]:
    """List all files that ``read_rows(path)`` reads, the table itself first.

    Raises DataError when there is no such table, or it cannot be read.
    """
    if tables := binary_tables.in_folder(path):
        return tables
    table = _find_table(path)
    if not _is_csv(table):
        return [table]
    entries, _, _ = _read_csv(table)
    files = (_structure_file(table.parent, row["id"]) for _, row in entries)
    return [table, *(file for file in files if file)]


def read_rows(path: Path) -> Rows:
    """Return the rows of ``path``, one after the other, and messages about those it cannot read.

    The list of messages grows while the rows are taken. Raises DataError when there is no such
    table, and the rows raise it where they cannot be read.
    """
    bad: list[str] = []
    if files := binary_tables.in_folder(path):
        return chain.from_iterable(_readable(f, binary_tables.read(f, bad)) for f in files), bad
    table = _find_table(path)
    if _is_csv(table):
        return _with_structures(table, *_read_csv(table)[:2])
    if table.suffix.lower() in binary_tables.READERS:
        return _readable(table, binary_tables.read(table, bad)), bad
    frames = without_compression(table.name).lower().endswith((".xyz", ".extxyz"))
    rows = _read_extxyz(table, bad) if frames else _read_lines(table, bad)
    return _readable(table, rows), bad


def _readable(table: Path, rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows
    except _DAMAGED as error:
        raise DataError(f"{table}: cannot be read: {error}") from error


def read_remarks(path: Path) -> list[str]:
    """Return what is assumed about the table that ``path`` means: one sentence for each."""
    if binary_tables.in_folder(path):
        return []
    table = _find_table(path)
    return _read_csv(table)[2] if _is_csv(table) else []


def _is_csv(path: Path) -> bool:
    return without_compression(path.name).lower().endswith(".csv")


def _is_id_prop(path: Path) -> bool:
    return without_compression(path.name).lower() == "id_prop.csv"


def _find_table(path: Path) -> Path:
    if path.is_dir():
        tables = sorted(t for t in path.iterdir() if _is_csv(t) and not t.name.startswith("."))
        named = list(filter(_is_id_prop, tables))
        if len(tables := named[:1] or tables) != 1:
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
    try:
        open_bytes(path).close()
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not without_compression(path.name).lower().endswith(_TABLES):
        raise DataError(
            f"{path}: unknown file type; expected .jsonl, .jsonl.gz, .csv, .extxyz, "
            ".parquet, .aselmdb or a folder"
        )
    return path


def _read_lines(path: Path, bad: list[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if row["id"] is None:
                raise ValueError("id is null")
            where = f"{path}:{number} ({row['id']})"
        except (ValueError, KeyError, TypeError, RecursionError):
            bad.append(f"{path}:{number}: not a JSON object with an id")
            continue
        try:
            if "structure" in row:
                row |= pymatgen_row(row.pop("structure"), where)
        except StructureError as error:
            bad.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            bad.append(f"{where}: structure is not pymatgen's: {error!r}")
        else:
            yield where, row


def _read_csv(path: Path) -> tuple[list[tuple[str, Row]], list[str], list[str]]:
    """Read the lines of a CSV as rows without structures, their properties in ``BESIDE``.

    The value column of a table without header is called "". Returns also messages about bad lines,
    and what is assumed.
    """
    try:
        lines = read_text(path).split("\n")
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    separator = _separator(numbered)
    records = list(_records(numbered, separator))
    names, remarks = _header(path, records)
    rows: list[tuple[str, Row]] = []
    bad: list[str] = []
    for number, cells in records:
        where = f"{path}:{number}"
        if isinstance(cells, csv.Error):
            bad.append(f"{where}: not a line of a CSV file: {cells}")
        elif (fitting := _fitted(cells, names)) is None:
            bad.append(f"{where}: has {len(cells)} columns; expected {len(names)}")
        elif comma := _torn_number(fitting, names) if separator == "," else "":
            bad.append(f"{where}: is {comma} one number? quote it, or separate cells by semicolons")
        elif any(fitting):
            row: Row = {BESIDE: {n: c for n, c in zip(names, fitting, strict=True) if n != _NONE}}
            row["id"] = row[BESIDE].pop("id")
            rows.append((f"{where} ({row['id']})", row))
    remarks += _read_values(path, [row[BESIDE] for _, row in rows], separator)
    return rows, bad, remarks


_NONE = "Unnamed"  # stands for every column without a name
_Record = tuple[int, list[str] | csv.Error]  # the number of its first line, and its cells


def _separator(numbered: list[tuple[int, str]]) -> str:
    """Return what separates the cells, by the first line, which is left out if it says so."""
    first = numbered[0][1] if numbered else ""
    if told := re.fullmatch(r'"?sep=(.)"?,*', first.strip(" "), re.IGNORECASE):  # Excel's
        del numbered[0]
        return told[1]
    likely = sorted("\t;,", key=first.count, reverse=True)  # a comma may be a decimal mark
    return next((s for s in likely if _names_id(first.split(s))), likely[0])


def _names_id(cells: Sequence[str]) -> bool:
    return any(cell.strip(' "').lower() == "id" for cell in cells)


def _records(numbered: Sequence[tuple[int, str]], separator: str) -> Iterator[_Record]:
    """Yield the records: lines, and several lines where a quoted cell goes over their ends.

    An open quote harms no other line.
    """
    at = 0
    while at < len(numbered):
        number, line = numbered[at]
        cells, used = _cells(line, separator), 1
        if isinstance(cells, csv.Error) and line.count('"') % 2:
            rest = numbered[at + 1 :]
            end = next((n for n, (_, text) in enumerate(rest, 2) if text.count('"') % 2), 1)
            together = "\n".join(text for _, text in numbered[at : at + end])
            if not isinstance(joined := _cells(together, separator), csv.Error):
                cells, used = joined, end
        yield number, cells
        at += used


def _cells(text: str, separator: str) -> list[str] | csv.Error:
    try:
        (cells,) = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    except csv.Error as error:
        return error
    except ValueError:  # several records
        return csv.Error("a quoted cell ends in another line")
    return [cell.strip() for cell in cells]


def _fitted(cells: list[str], names: Sequence[str]) -> list[str] | None:
    """Return one cell for every name: empty ones without a name may be too many, or lacking."""
    surplus, lacking = cells[len(names) :], names[len(cells) :]
    if any(surplus) or any(name != _NONE for name in lacking):
        return None
    return cells[: len(names)] + [""] * len(lacking)


def _torn_number(cells: Sequence[str], names: Sequence[str]) -> str:
    """Return a number that its decimal comma made two cells, the second without a name; or ""."""
    for name, whole, after, part in zip(names, cells, names[1:], cells[1:], strict=False):
        if name not in ("id", _NONE) and after == _NONE and part.isdecimal():
            if re.fullmatch(r"[+-]?\d+", with_plain_signs(whole)):
                return f"{whole},{part}"
    return ""


def _header(path: Path, records: list[_Record]) -> tuple[list[str], list[str]]:
    """Return the names of the columns, and what is assumed; takes their line off the records."""
    first = records[0][1] if records else ["id"]
    if _is_id_prop(path) and not (isinstance(first, list) and _names_id(first)):
        return ["id", ""], []
    where = f"{path}:{records.pop(0)[0]}" if records else str(path)
    if isinstance(first, csv.Error):
        raise DataError(f"{where}: not a line of a CSV file: {first}")
    names = ["id" if cell.lower() == "id" else cell for cell in first]
    names = [name if name and not re.match(r"Unnamed: \d", name) else _NONE for name in names]
    if "id" not in names:
        raise DataError(
            f"{where}: the first line must name the columns, one of them 'id'; it has "
            f"{', '.join(map(repr, first))}"
        )
    if duplicates := sorted({n for n in names if names.count(n) > 1 and n != _NONE}):
        raise DataError(
            f"{where}: duplicate column {', '.join(map(repr, duplicates))}; give every column its "
            "own name"
        )
    unnamed = [str(n) for n, name in enumerate(names, start=1) if name == _NONE]
    if not unnamed:
        return names, []
    what = f"column {unnamed[0]} has" if len(unnamed) == 1 else f"columns {', '.join(unnamed)} have"
    return names, [f"{path}: {what} no name and {'is' if len(unnamed) == 1 else 'are'} left out."]


def _read_values(path: Path, rows: Sequence[Row], separator: str) -> list[str]:
    """Turn cells into numbers and None where they are; return what is assumed."""
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    commas = [n for n, cells in columns.items() if separator != "," and _decimal_commas(cells)]
    remarks = []
    for name, cells in columns.items():
        pointed = any("." in cell and parse_number(cell) is not None for cell in cells)
        if converted := name in commas and not pointed:
            cells = [_with_point(cell) for cell in cells]
            remarks.append(f"{path}: {name or 'the value'} has decimal commas: 1,5 is read as 1.5.")
        # Beside decimal commas, or whole numbers below a thousand, 1.234 may be a thousand.
        doubtful = not converted and _thousands(cells, bool(commas))
        for row, cell in zip(rows, cells, strict=True):
            if doubtful and _THOUSAND.fullmatch(with_plain_signs(cell)):
                cell = f"{cell} or {cell.replace('.', '')}"
            row[name] = _value(cell)
    return remarks


def _thousands(cells: Sequence[str], commas: bool) -> bool:
    """Return whether points may separate thousands; ``commas``: the table has decimal ones."""
    plain = [with_plain_signs(cell) for cell in cells]
    points = [cell for cell in plain if "." in cell and parse_number(cell) is not None]
    if not all(map(_THOUSAND.fullmatch, points)):  # 1.5 is none
        return any(_with_point(cell) != cell for cell in plain)
    return commas or any(map(_BELOW_THOUSAND.fullmatch, plain))


def _decimal_commas(cells: Sequence[str]) -> bool:
    """Return whether some cells have decimal commas, which no 1,234 tells."""
    plain = [with_plain_signs(cell) for cell in cells]
    pointed = [_with_point(cell) for cell in plain]
    return any(
        old != new and not _THOUSAND.fullmatch(new) for old, new in zip(plain, pointed, strict=True)
    )


def _with_point(cell: str) -> str:
    """Return a number with a decimal comma as one with a point, and anything else as it is."""
    pointed = cell.replace(",", ".", 1)
    return cell if "." in cell or parse_number(pointed) is None else pointed


def _value(cell: str) -> float | str | None:
    if with_plain_signs(cell).lower() in MISSING:
        return None
    number = parse_number(cell)
    return cell if number is None else number


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
        doubts = doubts_of(structure)
    except StructureError as error:
        return str(error)
    z = [site.specie.Z for site in structure]
    if isinstance(structure, Molecule):
        return {"Z": z, "pos": structure.cart_coords, DOUBTS: doubts}
    frac, lattice = structure.frac_coords, structure.lattice.matrix
    return {"Z": z, "frac": frac, "lattice": lattice, DOUBTS: doubts}


def _read_extxyz(path: Path, bad: list[str]) -> Iterator[tuple[str, Row]]:
    stem = Path(without_compression(path.name)).stem
    for frame in read_frames(path):
        where = f"{path}:{frame.line} (frame {frame.number})"
        if isinstance(frame.atoms, ValueError):
            bad.append(f"{where}: {frame.atoms}")
            continue
        properties = {name: value for name, value in frame.info.items() if np.ndim(value) == 0}
        identifier = properties.pop("id", f"{stem}:{frame.number}")
        yield where, {"id": identifier, BESIDE: properties} | atoms_row(frame.atoms)
