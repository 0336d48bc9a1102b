"""What was assumed while a structure was read; it travels with the structure.

A remark tells an assumption that is surely right, as a coordinate that was rounded. A doubt tells
that the structure may be another one than the file means: predictions of it are flagged.
"""

from __future__ import annotations

from pymatgen.core import Molecule, Structure

_REMARKS, _DOUBTS = "matattn_remarks", "matattn_doubts"


def add_remark(structure: Structure | Molecule, text: str) -> None:
    """Note what was assumed."""
    structure.properties[_REMARKS] = [*remarks_of(structure), text]


def add_doubt(structure: Structure | Molecule, text: str) -> None:
    """Note why the structure may be a wrong one."""
    structure.properties[_DOUBTS] = [*doubts_of(structure), text]


def remarks_of(structure: Structure | Molecule) -> list[str]:
    """Return what was assumed while this structure was read."""
    return list(structure.properties.get(_REMARKS, ()))


def doubts_of(structure: Structure | Molecule) -> list[str]:
    """Return why this structure may be a wrong one."""
    return list(structure.properties.get(_DOUBTS, ()))
