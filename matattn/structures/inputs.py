"""What may be predicted from Python: objects of pymatgen and ASE, paths, dictionaries, and many."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import IMolecule, IStructure, Molecule, Structure
from pymatgen.core.sites import Site

from matattn.errors import StructureError
from matattn.structures.files import entries
from matattn.structures.formats.ase_files import from_ase
from matattn.structures.formats.pymatgen_json import from_json
from matattn.structures.formats.record import AnyStructure
from matattn.structures.stream import find_sources

Given = tuple[str, AnyStructure | StructureError]  # what messages call it, and itself
TAKEN = (
    "a Structure or Molecule of pymatgen, Atoms of ASE, the path of a file, pymatgen's dictionary, "
    "or several: a list, a dictionary by name, or a DataFrame with a column 'structure'"
)
_NO_COLLECTIONS = (bytes, bytearray, Site, Mapping, io.IOBase)  # although one can iterate over them
_ATOMS = ("numbers", "positions", "cell", "pbc")  # attributes of ASE's objects
_DESCRIPTION = frozenset({"sites", "Z", "lattice", "lattice_mat", "numbers", "@class"})
_NESTED = ("structure", "molecule", "atoms")  # keys of a row that may hold a description


def take(structures: Any, places: Sequence[str] | None = None) -> list[Given]:
    """Return every structure of what was given, or the error in its place, in order.

    Messages call them ``places``, else "structure 1" and so on; those of a file are named after it.
    Raises TypeError, which names what is taken, for something else.
    """
    elements, names = _several(structures)
    places = places or names or [f"structure {n}" for n in range(1, len(elements) + 1)]
    return [
        given
        for element, place in zip(elements, places, strict=True)
        for given in _take_one(element, place)
    ]


def _several(structures: Any) -> tuple[list[Any], list[str] | None]:
    """Return the elements of what was given, and their names if they have some."""
    if _is_one(structures):
        return [structures], None
    if isinstance(structures, dict):
        return list(structures.values()), [str(name) for name in structures]
    if hasattr(structures, "columns"):
        if "structure" not in structures.columns:
            columns = ", ".join(map(str, structures.columns))
            raise TypeError(f"the DataFrame has no column 'structure', but {columns or 'none'}")
        structures = structures["structure"]
    try:
        if isinstance(structures, _NO_COLLECTIONS):
            raise TypeError
        iterator = iter(structures)
    except TypeError:
        kind = type(structures).__name__
        raise TypeError(f"got an object of type {kind}, expected {TAKEN}") from None
    return list(iterator), None


def _is_one(given: Any) -> bool:
    """Return whether this is one structure, or one file, and not a collection of them."""
    if isinstance(given, IStructure | IMolecule | StructureError | str | os.PathLike):
        return True
    return _is_description(given) or _is_atoms(given) or _is_sites(given)


def _is_description(given: Any) -> bool:
    """Return whether this is a dictionary that describes a structure, not one of structures."""
    if not isinstance(given, dict):
        return False
    nested = (given.get(key) for key in _NESTED)
    return not _DESCRIPTION.isdisjoint(given) or any(isinstance(part, dict) for part in nested)


def _is_atoms(given: Any) -> bool:
    return not isinstance(given, type) and all(hasattr(given, name) for name in _ATOMS)


def _is_sites(given: Any) -> bool:
    """Return whether these are the sites of one structure, as NumPy takes a structure apart."""
    many = isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.ndim == 1)
    return many and len(given) > 0 and all(isinstance(site, Site) for site in given)


def _take_one(element: Any, where: str) -> Iterator[Given]:
    """Yield a structure, those of a file, or the error in its place."""
    if isinstance(element, str | os.PathLike):
        yield from _read(os.fsdecode(element), where)
        return
    try:
        yield where, _structure(element, where)
    except StructureError as error:
        yield where, error
    except Exception as error:  # pymatgen raises anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        yield where, StructureError(f"{where}: {reason}")


def _read(name: str, where: str) -> Iterator[Given]:
    """Yield the structures of a file, of those in a folder, or of those that a glob names."""
    if "\n" in name or "\0" in name:
        error = "a text is taken for the path of a file; this one has several lines"
        yield where, StructureError(f"{where}: {error}")
        return
    for source in find_sources([name]) if name != "-" else [name]:
        for entry in entries(source):
            yield entry.place, entry.structure


def _structure(element: Any, where: str) -> AnyStructure:
    """Return an object as pymatgen's Structure or Molecule; raises StructureError if it is none."""
    if isinstance(element, StructureError):
        raise element
    if isinstance(element, Structure | Molecule):
        return element
    if isinstance(element, IStructure):
        return Structure.from_sites(list(element), properties=element.properties)
    if isinstance(element, IMolecule):
        return Molecule.from_sites(list(element), properties=element.properties)
    if isinstance(element, dict):
        return from_json(element)
    if _is_atoms(element):
        return from_ase(element)
    if _is_sites(element):
        kind = Structure if hasattr(element[0], "lattice") else Molecule
        return kind.from_sites(list(element))
    what = "None" if element is None else f"an object of type {type(element).__name__}"
    raise StructureError(f"{where} is {what}, expected {TAKEN.partition(', or several')[0]}")
