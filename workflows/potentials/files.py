"""Crystals of files, and names for what is written of them."""

from __future__ import annotations

from pymatgen.core import Structure

from matattn.errors import StructureError
from matattn.structures.files import Entry


def crystal_of(entry: Entry) -> Structure:
    """Return the crystal of an entry; raises StructureError for what is none."""
    if isinstance(entry.structure, StructureError):
        raise entry.structure
    if not isinstance(entry.structure, Structure):
        raise StructureError(f"{entry.place}: a molecule has no cell; this command needs one")
    return entry.structure


def unique_name(name: str, named: dict[str, int]) -> str:
    """Return an id that names one file, and count it in ``named``."""
    safe = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in name) or "structure"
    named[safe] = named.get(safe, 0) + 1
    return safe if named[safe] == 1 else f"{safe}-{named[safe]}"
