"""Rows of data sets from Parquet and from ASE's LMDB files, and from dictionaries of structures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from matattn.datasets.structures_io import BESIDE, Row
from matattn.errors import DataError, StructureError
from matattn.structures.formats import aselmdb, parquet
from matattn.structures.formats.atoms import NUMBERS, Atoms
from matattn.structures.formats.pymatgen_json import atoms_of_ase, atoms_of_optimade, read_sites

READERS = {".parquet": parquet.read_rows, ".aselmdb": aselmdb.read_rows}
_OPTIMADE = ("lattice_vectors", "cartesian_site_positions", "species_at_sites")
_ASE = ("numbers", "positions", "cell", "pbc")
# Of ASE's rows: what is no property.
_ADMINISTRATION = ("unique_id", "ctime", "mtime", "user", "calculator", "energy")


def in_folder(path: Path) -> list[Path]:
    """Return the files of one kind, sorted, if ``path`` is a folder of such and has no CSV."""
    if not path.is_dir():
        return []
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    if any(".csv" in file.name.lower() for file in inside):
        return []
    for kind in READERS:
        if files := [file for file in inside if file.suffix.lower() == kind]:
            return files
    return []


def read(path: Path, bad: list[str]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file, and add messages about those that cannot be read to ``bad``.

    Raises DataError where a package is missing, and the errors of the reader.
    """
    kind = path.suffix.lower()
    try:
        for name, place, row in READERS[kind](path):
            try:
                if isinstance(row, ValueError):
                    raise row
                yield place, _ase_row(row, name) if kind == ".aselmdb" else _row(row, place)
            except StructureError as error:
                bad.append(str(error))
            except (KeyError, TypeError, ValueError) as error:
                reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
                bad.append(f"{place}: {reason}")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: needs the package {error.name}: pip install 'matattn[data]'"
        ) from None


def _row(row: Row, place: str) -> Row:
    """Return a row of Parquet with the structure as ours."""
    if "structure" in row:
        return row | pymatgen_row(row.pop("structure"), place)
    for keys, convert in ((_OPTIMADE, atoms_of_optimade), (_ASE, atoms_of_ase)):
        if all(key in row for key in keys):
            atoms = convert(row)
            others = {*keys, "species", "dimension_types", "id"}
            beside = {name: value for name, value in row.items() if name not in others}
            return {"id": row["id"], BESIDE: beside} | atoms_row(atoms)
    return row


def _ase_row(row: Row, name: str) -> Row:
    """Return a row of ASE's database: its numbers and texts, and the energy of it and per atom."""
    atoms = atoms_of_ase(row)
    properties = {k: v for k, v in row.items() if k not in _ADMINISTRATION}
    for part in ("key_value_pairs", "data"):
        more = properties.pop(part, None)
        properties |= more if isinstance(more, dict) else {}
    properties = {k: v for k, v in properties.items() if isinstance(v, int | float | str)}
    energy = row.get("energy")
    if isinstance(energy, int | float) and not isinstance(energy, bool):
        properties |= {"energy": energy, "total_energy_per_atom": energy / len(atoms.z)}
    return {"id": name, BESIDE: properties} | atoms_row(atoms)


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


def atoms_row(atoms: Atoms) -> Row:
    """Return the structure part of a row."""
    if atoms.cell is None:
        return {"Z": atoms.z, "pos": atoms.pos}
    frac = np.linalg.solve(atoms.cell.T, atoms.pos.T).T
    return {"Z": atoms.z, "frac": frac, "lattice": atoms.cell}
