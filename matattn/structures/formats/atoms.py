"""Atoms as files tell them: labels become elements, and cell and periodicity a structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.core import Element, Molecule, Structure

from matattn.structures.formats.record import AnyStructure
from matattn.structures.remarks import add_doubt, add_remark

SYMBOLS = [""] + [Element.from_Z(z).symbol for z in range(1, 119)]
NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS) if z}

# In capitals, names of atoms in force fields and proteins, too: C alpha, O of serine.
_NAMES = set("CA CD CE CF CM CO CS HE HF HG HO HS NB ND NE NO NP OS SG".split())
_LONGEST_LABEL = 40
_CHARGED = re.compile(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-]|[+-]\d*\.?\d*)")
_NUMBERED = re.compile(r"([A-Z][a-z]?)[_-]?\d+")


@dataclass(frozen=True)
class Atoms:
    """Atomic numbers and Cartesian positions (Å), and the cell (rows, Å) of a crystal.

    A molecule has the cell None. Remarks and doubts: see ``matattn.structures.remarks``.
    """

    z: Sequence[int]
    pos: np.ndarray
    cell: np.ndarray | None
    remarks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def structure(self) -> AnyStructure:
        """Return pymatgen's object."""
        species = [SYMBOLS[z] for z in self.z]
        structure: AnyStructure
        if self.cell is None:
            structure = Molecule(species, self.pos)
        else:
            structure = Structure(self.cell, species, self.pos, coords_are_cartesian=True)
        return noted(structure, self.remarks, self.doubts)


def noted(
    structure: AnyStructure, remarks: Iterable[str], doubts: Iterable[str] = ()
) -> AnyStructure:
    """Return the structure with remarks and doubts on it."""
    for remark in remarks:
        add_remark(structure, remark)
    for doubt in doubts:
        add_doubt(structure, doubt)
    return structure


def make_atoms(
    z: Sequence[int], pos: Any, cell: Any, pbc: Any, remarks: Iterable[str] = ()
) -> Atoms:
    """Return the atoms of a crystal, or of a molecule if they are periodic nowhere.

    Raises ValueError where they are periodic in some directions only, or have no volume.
    """
    pos = np.asarray(pos, dtype=np.float64).reshape(-1, 3)
    if len(z) != len(pos):
        raise ValueError(f"has {len(z)} elements and {len(pos)} positions")
    for number, atomic_number in enumerate(z, start=1):
        if not 0 < atomic_number < len(SYMBOLS):
            raise ValueError(f"atom {number}: {atomic_number} is no atomic number")
    if (bad := np.flatnonzero(~np.isfinite(pos).all(axis=1))).size:
        raise ValueError(f"atom {bad[0] + 1} has a NaN or infinite coordinate")
    if not is_periodic(pbc):
        return Atoms(z, pos, None, tuple(remarks))
    return Atoms(z, pos, checked_cell(cell), tuple(remarks))


def is_periodic(pbc: Any) -> bool:
    """Return whether ``pbc`` is true in all directions; ValueError if only in some."""
    flags = np.broadcast_to(np.asarray(pbc), (3,))
    if flags.dtype.kind not in "bi":
        raise ValueError(f"pbc is {pbc!r}; expected three times true or false")
    if flags.any() and not flags.all():
        told = " ".join("T" if flag else "F" for flag in flags)
        raise ValueError(
            f"is periodic in some directions only (pbc {told}); expected a crystal (T T T) or a "
            "molecule (F F F)"
        )
    return bool(flags.all())


def checked_cell(cell: Any) -> np.ndarray:
    """Return a cell [3, 3] as an array; ValueError if it is not one, or has no volume."""
    try:
        cell = np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("the lattice is not 3 x 3 numbers") from None
    if cell.shape != (3, 3):
        raise ValueError(f"the lattice has the shape {cell.shape}; expected 3 x 3 numbers")
    if not np.isfinite(cell).all():
        raise ValueError("a lattice vector is NaN or infinite")
    if not cell.any():
        raise ValueError("is periodic, and has no lattice")
    lengths = np.linalg.norm(cell, axis=1)
    if abs(np.linalg.det(cell)) <= 1e-9 * lengths.prod():
        raise ValueError("the lattice vectors lie in one plane: the cell has no volume")
    return cell


def read_elements(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the atomic numbers that the labels of atoms mean, and remarks on what was assumed.

    Raises ValueError, naming the first atom, where a label may mean something else.
    """
    if labels and all(label.isdecimal() for label in labels):
        return _from_numbers(labels)
    elements = {}
    for label in dict.fromkeys(labels):
        try:
            elements[label] = read_element(label)
        except ValueError as error:
            raise ValueError(f"atom {labels.index(label) + 1}: {error}") from None
    changed = [f"{label} as {symbol}" for label, symbol in elements.items() if label != symbol]
    return [NUMBERS[elements[label]] for label in labels], label_remarks(changed)


def label_remarks(changed: Sequence[str]) -> list[str]:
    """Return at most one remark about labels that were taken for elements."""
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return [f"labels taken for elements: {', '.join(changed[:5])}{more}"] if changed else []


def _from_numbers(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    numbers = [int(label) for label in labels]
    if set(numbers) == set(range(1, max(numbers) + 1)):  # LAMMPS writes its types so
        raise ValueError(
            f"the atoms are called 1 to {max(numbers)}, which may be types of LAMMPS; write "
            "symbols of elements"
        )
    return numbers, ["species taken for atomic numbers"]


def read_element(label: str, any_case: bool = False) -> str:
    """Return the symbol of the element that the label of an atom means: Na of Na, NA, Na+, Na1.

    ``any_case``: CA is calcium, where it cannot be a name of an atom. Raises ValueError for what
    is no element (X, OH, WAT, T1), or may be a name.
    """
    if label in NUMBERS:
        return label
    if len(label) > _LONGEST_LABEL:
        raise ValueError(f"{label[:_LONGEST_LABEL]!r}... is not a chemical element")
    if label == "D":
        return "H"
    match = _CHARGED.fullmatch(label) or _NUMBERED.fullmatch(label)
    if match and match[1] in NUMBERS:
        return match[1]
    if label.title() in NUMBERS and label.isalpha():
        if label.upper() in _NAMES and not any_case:
            raise ValueError(f"{label!r} may be {label.title()}, or the name of an atom "
                             f"({label[0].upper()}); write the symbol of the element")  # fmt: skip
        return label.title()
    raise ValueError(f"{label!r} is not a chemical element")
