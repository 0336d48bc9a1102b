"""Structures from files of many formats, and by mp-id: which parser reads which file.

Nothing here unpickles, or imports a module that a file names.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from lzma import LZMAError
from pathlib import Path
from typing import NamedTuple

from pymatgen.core import Structure

from matattn.errors import StructureError
from matattn.structures.formats import (
    ase_files,
    aselmdb,
    cif,
    extended_xyz,
    other,
    parquet,
    poscar,
    pymatgen_json,
)
from matattn.structures.formats.record import AnyStructure, Parser, Record
from matattn.text_files import open_bytes, without_compression


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
        path, stem = str(source), Path(without_compression(Path(source).name)).stem
        records = _parse(Path(source))
    else:
        path = stem = "-"  # standard input
        records = pymatgen_json.parse_rows(source, path)
    first, second = next(records, None), next(records, None)
    if first is None:
        first = "", path, StructureError(f"{path}: holds no structure")
    start = [record for record in (first, second) if record is not None]
    for number, (name, place, structure) in enumerate(chain(start, records), start=1):
        yield Entry(name or (f"{stem}:{number}" if second else stem), path, place, structure)


def is_structure_file(path: Path) -> bool:
    """Return whether ``read`` knows a file by its name, or (``.in``, ``.out``) by its content."""
    return not os.path.isdir(path) and _kind(path) is not None


def is_found_in_folder(path: Path) -> bool:
    """Return whether a folder means this file: a structure, and no output that repeats one."""
    name = without_compression(path.name.lower())
    return is_structure_file(path) and not re.fullmatch(_OUTPUTS, name, re.DOTALL)


def holds_one(path: Path) -> bool:
    """Return whether files of this kind hold one structure, or few: a process can read them."""
    return _kind(path) not in (None, *_MANY)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    inner = without_compression(name)
    for kind, (pattern, _) in KINDS.items():
        if re.fullmatch(pattern, name if kind in _BINARY else inner, re.DOTALL):
            return kind
    return other.sniff(path) if re.fullmatch(other.AMBIGUOUS, inner, re.DOTALL) else None


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
        if os.path.isfile(path):
            _check_start(path)
        if kind is None:
            raise StructureError(f"{path}: unknown file type; expected {_EXPECTED}")
        yield from KINDS[kind][1](path)
    except StructureError as error:
        yield "", str(path), error
    except ModuleNotFoundError as error:
        yield "", str(path), _missing(error, str(path))
    except (EOFError, LZMAError, zlib.error) as error:
        yield "", str(path), StructureError(f"{path}: cannot be unpacked, is damaged: {error}")
    except Exception as error:  # parsers raise anything on damaged files
        reason = " ".join((str(error) or type(error).__name__).split())
        yield "", str(path), StructureError(f"{path}: cannot be read as {kind}: {reason}")


def _check_start(path: Path) -> None:
    """Refuse an empty file, a pointer of Git LFS, and a name that hides or feigns compression."""
    try:
        with open_bytes(path):
            pass
    except ValueError as error:
        raise StructureError(f"{path}: {error}") from None
    with open(path, "rb") as file:
        start = file.read(6)
    if not start:
        raise StructureError(f"{path}: the file is empty")
    ending = next((ending for mark, ending in _MARKS.items() if start.startswith(mark)), "")
    plain = without_compression(path.name)
    if not ending and plain != path.name:
        raise StructureError(
            f"{path}: is not compressed, or damaged; if it is text, call it {plain}"
        )
    if ending and path.suffix.lower() != ending:
        raise StructureError(f"{path}: is compressed; call it {plain}{ending}")


_MARKS = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}


def _missing(error: ModuleNotFoundError, where: str) -> StructureError:
    return StructureError(f"{where}: needs the package {error.name}: pip install 'matattn[data]'")


# Kinds of files: a pattern of the whole name (in lower case, without .gz, .bz2 or .xz), and the
# parser. Endings come before names that only begin or end as POSCAR.
KINDS: dict[str, tuple[str, Parser]] = {
    "CIF": (r".*\.m?cif", cif.parse),
    "extended XYZ": (r".*\.(ext)?xyz", extended_xyz.parse),
    "pymatgen JSON": (r".*\.json", pymatgen_json.parse),
    "JSON lines": (r".*\.jsonl", pymatgen_json.parse_lines),
    "a database of ASE": (r".*\.db", ase_files.parse_database),
    "a trajectory of ASE": (r".*\.traj", ase_files.parse_trajectory),
    "ASE's LMDB": (r".*\.aselmdb", aselmdb.parse),
    "Parquet": (r".*\.parquet", parquet.parse),
    **other.KINDS,
    "XDATCAR": (r"(.*[-_.])?xdatcar([-_.].*)?", poscar.parse_frames),
    "POSCAR": (
        r"(poscar|contcar|centcar).*|.*(poscars?|contcar)|[a-z]poscar[-_.].*|.*\.vasp"
        r"|(chgcar|aeccar|locpot|parchg|elfcar)([-_.0-9].*)?",
        poscar.parse,
    ),
}
# Files of calculations that repeat the structure of another file beside them.
_OUTPUTS = (
    rf"{other.AMBIGUOUS}|.*\.pwo|.*vasprun.*\.xml|(.*[-_.])?xdatcar.*"
    r"|(chgcar|aeccar|locpot|parchg|elfcar).*"
)
_BINARY = (
    "a database of ASE",
    "a trajectory of ASE",
    "ASE's LMDB",
    "Parquet",
)  # not read compressed
_MANY = ("extended XYZ", "JSON lines", "XDATCAR", *_BINARY)  # structures in a file
_EXPECTED = (
    ".cif, .vasp, POSCAR*, CONTCAR*, XDATCAR, CHGCAR, .extxyz, .xyz, .json, .jsonl, vasprun.xml, "
    ".xsf, .cube, .cssr, or an input or output of Quantum ESPRESSO, FHI-aims or LAMMPS (all also "
    "as .gz, .bz2 or .xz), or .db or .traj of ASE, .aselmdb or .parquet"
)


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
