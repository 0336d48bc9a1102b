"""Structures from files: CIF, POSCAR, (extended) XYZ, JSON, JSON lines, ASE, and by mp-id.

Nothing here unpickles, or imports a module that a file names.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TextIO, cast

import numpy as np
from pymatgen.core import Molecule, Structure

from matattn.errors import StructureError
from matattn.structures.formats import cif
from matattn.structures.formats.record import AnyStructure, Parser, Record

LONGEST_LINE = 2**26  # characters: a structure with a million atoms has about as many


class Entry(NamedTuple):
    """A structure, or the error in its place, with its names for tables and messages."""

    id: str
    path: str
    place: str  # path, and line or number within the file
    structure: AnyStructure | StructureError


def read(path: str | Path) -> list[AnyStructure | StructureError]:
    """Return all structures of a file (see ``KINDS``).

    Of several structures, one that cannot be read is replaced by its StructureError. Raises
    StructureError, naming the file, when nothing of it can be read.
    """
    structures = [entry.structure for entry in entries(path)]
    if len(structures) == 1 and isinstance(structures[0], StructureError):
        raise structures[0]
    return structures


def entries(source: str | Path | Iterable[str]) -> Iterator[Entry]:
    """Yield the structures of a file, or of JSON lines that were read elsewhere.

    Never raises: what cannot be read is a StructureError, and the structures before it are kept. A
    structure has its own id, else the name of the file (``name:2`` if there are several).
    """
    if isinstance(source, str | Path):
        path, stem = str(source), Path(source).stem
        records = _parse(Path(source))
    else:
        path = stem = "-"  # standard input
        records = _json_lines(source, path)
    first, second = next(records, None), next(records, None)
    if first is None:
        first = "", path, StructureError(f"{path}: holds no structure")
    start = [record for record in (first, second) if record is not None]
    for number, (name, place, structure) in enumerate(chain(start, records), start=1):
        yield Entry(name or (f"{stem}:{number}" if second else stem), path, place, structure)


def is_structure_file(path: Path) -> bool:
    """Return whether the name of a file is one that ``read`` knows."""
    return not os.path.isdir(path) and _kind(path) is not None


def holds_one(path: Path) -> bool:
    """Return whether files of this kind hold one structure, or few: a process can read them."""
    return _kind(path) in ("CIF", "POSCAR", "pymatgen JSON")


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    for kind, (pattern, _) in KINDS.items():
        if re.fullmatch(pattern, name, re.DOTALL):
            return kind
    return None


def _parse(path: Path) -> Iterator[Record]:
    kind = _kind(path)
    try:
        if os.path.isdir(path):  # path.is_dir() raises an error when a name is too long
            raise StructureError(f"{path}: is a folder without structure files")
        if not os.path.exists(path) and _MP_ID.fullmatch(str(path)):
            yield str(path), str(path), _from_materials_project(str(path))
            return
        if not os.path.exists(path):
            raise StructureError(f"{path}: no such file")
        if kind is None:
            raise StructureError(
                f"{path}: unknown file type; expected .cif, .vasp, POSCAR*, CONTCAR*, .extxyz, "
                ".json, .jsonl, .jsonl.gz, .db or .traj (ASE)"
            )
        if path.stat().st_size == 0:
            raise StructureError(f"{path}: the file is empty")
        yield from KINDS[kind][1](path)
    except StructureError as error:
        yield "", str(path), error
    except ModuleNotFoundError as error:
        yield "", str(path), _missing(error, str(path))
    except Exception as error:  # parsers raise anything on damaged files
        reason = " ".join((str(error) or type(error).__name__).split())
        yield "", str(path), StructureError(f"{path}: cannot be read as {kind}: {reason}")


def _missing(error: ModuleNotFoundError, where: str) -> StructureError:
    return StructureError(f"{where}: needs the package {error.name}: pip install 'matattn[data]'")


def _whole_file(parse: Callable[[Path], Iterable[Structure]]) -> Parser:
    """Return a parser of whole files, whose errors also hold pymatgen's warnings."""

    def parse_whole(path: Path) -> Iterator[Record]:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            try:
                structures = list(parse(path))
            except Exception as error:
                reasons = [str(error) or type(error).__name__, *(str(r.message) for r in remarks)]
                raise ValueError("; ".join(dict.fromkeys(reasons))) from error
        if any("Elements in POSCAR cannot be determined" in str(r.message) for r in remarks):
            raise StructureError(
                f"{path}: has no element symbols (VASP 4); write them in a line above the numbers"
            )
        for structure in structures:
            yield "", str(path), structure

    return parse_whole


def _poscar(path: Path) -> Iterable[Structure]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[5:7]:  # the numbers of atoms, below the symbols or (VASP 4) the cell
        if re.fullmatch(r"(\s*\d+)+\s*", line):
            _check_count(sum(map(int, line.split())), len(lines))
            break
    return [Structure.from_file(path)]


def _check_count(atoms: int, lines: int) -> None:
    """Raise ValueError if a file declares more atoms than it has lines: parsers allocate them."""
    if atoms > lines:
        raise ValueError(f"declares {atoms} atoms, and has {lines} lines")


def _json(path: Path) -> Iterator[Record]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        yield _record(_from_json, content, str(path))
        return
    for number, entry in enumerate(content, start=1):
        yield _record(_from_json, entry, f"{path}, entry {number}")


def _json_lines_file(path: Path) -> Iterator[Record]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        yield from _json_lines(_bounded(cast(TextIO, file)), str(path))


def _bounded(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raise ValueError at one that is too long, as of a zip bomb."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE} characters")
        yield line


def _json_lines(lines: Iterable[str], where: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            yield _record(_from_json, json.loads(line), place)
        except ValueError as error:
            yield "", place, StructureError(f"{place}: is not JSON: {error}")


def _from_json(entry: Any) -> AnyStructure:
    """Return a structure from pymatgen's dictionary, or from a row of data (``pos``: a molecule).

    Takes lattice, species and coordinates only: ``Structure.from_dict`` also decodes properties,
    and imports the modules that they name.
    """
    content = entry.get("structure", entry) if isinstance(entry, dict) else {}
    if {"lattice", "Z", "frac"} <= content.keys():
        return Structure(content["lattice"], content["Z"], content["frac"])
    if {"Z", "pos"} <= content.keys():
        return Molecule(content["Z"], content["pos"])
    if not {"lattice", "sites"} <= content.keys():
        raise ValueError(
            "expected a structure of pymatgen (lattice, sites) or a row of data (id, lattice, Z, "
            "frac)"
        )
    sites = content["sites"]
    species = [
        {str(kind["element"]): float(kind["occu"]) for kind in site["species"]} for site in sites
    ]
    return Structure(content["lattice"]["matrix"], species, [site["abc"] for site in sites])


def parse_extxyz(text: str, where: str) -> Iterator[Any]:
    """Return the frames of an extended XYZ file as ASE ``Atoms``."""
    try:
        from ase.io import iread
    except ModuleNotFoundError as error:
        raise _missing(error, where) from None
    lines = text.split("\n")
    index = 0
    while index < len(lines) and lines[index].strip().isdecimal():
        atoms = int(lines[index])
        _check_count(atoms, len(lines) - index)
        index += atoms + 2
    return iread(io.StringIO(text), index=":", format="extxyz")


def _extended_xyz(path: Path) -> Iterator[Record]:
    frames = parse_extxyz(path.read_text(encoding="utf-8"), str(path))
    for number, atoms in enumerate(frames, start=1):
        yield _record(_from_ase, atoms, f"{path}, frame {number}")


def _ase_database(path: Path) -> Iterator[Record]:
    import sqlite3

    from ase.db.sqlite import SQLite3Database

    # ASE would create its tables in a database that has none.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
    if ("systems",) not in tables:
        raise StructureError(f"{path}: is not a database of ASE (it has no table 'systems')")
    rows = SQLite3Database(str(path), create_indices=False, use_lock_file=False)
    for row in rows.select(include_data=False):
        _, place, structure = _record(_from_ase, row, f"{path}, row {row.id}")
        yield f"{path.stem}:{row.id}", place, structure


def _ase_trajectory(path: Path) -> Iterator[Record]:
    from ase.io import ulm  # JSON and arrays; older trajectories are pickles, which it refuses

    with open(path, "rb") as file:
        header = ulm.Reader(file)
        if header.get_tag() != "ASE-Trajectory":
            raise StructureError(f"{path}: is not a trajectory of ASE")
        for number in range(len(header)):
            frame = ulm.Reader(file, number)
            shared = {key: frame.get(key, header.get(key)) for key in ("numbers", "pbc")}
            atoms = SimpleNamespace(positions=frame.positions, cell=frame.cell, **shared)
            yield _record(_from_ase, atoms, f"{path}, frame {number + 1}")


def _from_ase(atoms: Any) -> AnyStructure:
    """Return the structure of an object with ASE's numbers, positions (Å), cell (Å) and pbc."""
    cell, positions = np.asarray(atoms.cell), np.asarray(atoms.positions)
    if is_molecule(atoms):
        return Molecule(atoms.numbers, positions)
    return Structure(cell, atoms.numbers, positions, coords_are_cartesian=True)


def is_molecule(atoms: Any) -> bool:
    """Return whether ASE ``Atoms`` are periodic nowhere; ValueError if only in some directions."""
    if np.any(atoms.pbc) and not np.all(atoms.pbc):
        raise ValueError('not periodic in all directions (give Lattice="...")')
    return not np.any(atoms.pbc)


# Kinds of files: a pattern of the whole name (in lower case), and the parser.
KINDS: dict[str, tuple[str, Parser]] = {
    "CIF": (r".*\.m?cif", cif.parse),
    "POSCAR": (r"(poscar|contcar).*|.*\.(vasp|poscar)", _whole_file(_poscar)),
    "extended XYZ": (r".*\.(ext)?xyz", _extended_xyz),
    "pymatgen JSON": (r".*\.json", _json),
    "JSON lines": (r".*\.jsonl(\.gz)?", _json_lines_file),
    "a database of ASE": (r".*\.db", _ase_database),
    "a trajectory of ASE": (r".*\.traj", _ase_trajectory),
}


def _record(convert: Callable[[Any], AnyStructure], entry: Any, place: str) -> Record:
    """Return the id of an entry ("" if it has none), its place, and its structure or its error."""
    name = str(entry.get("id", "")) if isinstance(entry, dict) else ""
    try:
        return name, place, convert(entry)
    except Exception as error:  # pymatgen raises anything on damaged data
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return name, place, StructureError(f"{place}: {kind}{' '.join(str(error).split())}")


_MP_ID = re.compile(r"mp-[0-9a-z]+")


def _from_materials_project(identifier: str) -> Structure:
    key = os.environ.get("MP_API_KEY")
    if not key:
        raise StructureError(
            f"{identifier}: no such file; to fetch the structure of this name from the Materials "
            "Project, set MP_API_KEY to your key"
        )
    from mp_api.client import MPRester

    try:
        with MPRester(key, mute_progress_bars=True) as project:
            structure = project.get_structure_by_material_id(identifier)
    except Exception as error:  # the client and the network raise anything
        reason = " ".join(str(error).replace(key, "MP_API_KEY").split())
        raise StructureError(f"{identifier}: cannot be fetched: {reason}") from None
    if not isinstance(structure, Structure):
        raise StructureError(f"{identifier}: the Materials Project has no structure of this name")
    return structure
