"""Structures of crystals and molecules: check them, and turn them into tensors.

Cartesian positions in Å; the rows of ``cell`` are the lattice vectors; positions are wrapped into
the cell before anything else happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import DummySpecies, Molecule, Structure

from matattn.errors import StructureError
from matattn.structures.neighbors import periodic_neighbors

if TYPE_CHECKING:
    import torch
    from torch_geometric.data import Data

MAX_ATOMIC_NUMBER = 98
_OVERLAP = 0.01  # Å: two atoms on one place, an error
_CLOSE = 0.5  # Å: suspicious, a warning
_LONGEST = 1e4  # Å: a lattice vector, or the distance of an atom of a molecule from the origin
_FARTHEST = 1e6  # cells: beyond, the place in the cell has lost its digits
_DENSEST = 1.0  # Å^3 per atom: diamond has 5.7, hydrogen at 5 megabars about 1.5
_THINNEST = 0.01  # Å, and share of a lattice vector, that it rises above the plane of the others


def validate(structure: Structure | Molecule, where: str = "structure") -> list[str]:
    """Check that a structure is a physical crystal, or molecule, of whole, known atoms.

    Returns warnings (atoms closer than 0.5 Å). Raises StructureError, beginning with ``where`` and
    naming the site, for partial occupancy, unknown elements, and all that ``validate_arrays``
    refuses.
    """
    for index, site in enumerate(structure):
        name = f"site {index + 1} ({site.species_string})"
        if not site.is_ordered:
            raise StructureError(
                f"{where}: {name} has partial occupancy; order it first, for example with "
                "pymatgen's OrderDisorderedStructureTransformation"
            )
        if isinstance(site.specie, DummySpecies):
            raise StructureError(f"{where}: {name} is not a chemical element")
    z = [site.specie.Z for site in structure]
    return validate_arrays(z, *_geometry(structure), where)


def _geometry(structure: Structure | Molecule) -> tuple[np.ndarray, np.ndarray | None]:
    """Fractional coordinates and cell, or Cartesian coordinates and None."""
    if isinstance(structure, Molecule):
        return structure.cart_coords, None
    return structure.frac_coords, structure.lattice.matrix


def validate_arrays(z: Sequence[int], coords: Any, cell: Any, where: str) -> list[str]:
    """As ``validate``, from atomic numbers [N], fractional coordinates [N, 3] and cell [3, 3] Å.

    Without a cell (None), of a molecule, coordinates are Cartesian, Å.

    Raises StructureError for: no atoms, wrong shapes, NaN or infinite numbers, a cell without
    volume or nearly flat, elements beyond Z = 98, and atoms closer than 0.01 Å.
    """
    try:
        given = np.asarray(z)
        with np.errstate(invalid="ignore"):  # what is no whole number is said below
            numbers = given.astype(np.int64)
        coords = np.asarray(coords, dtype=np.float64)
        cell = None if cell is None else np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise StructureError(f"{where}: atoms, coordinates or lattice are not numbers") from None
    if numbers.size == 0:
        raise StructureError(f"{where}: no atoms")
    if given.dtype.kind not in "iuf" or (given != numbers).any():
        raise StructureError(f"{where}: atomic numbers must be whole numbers")
    shape = (3, 3) if cell is None else cell.shape
    if coords.shape != (numbers.size, 3) or shape != (3, 3) or numbers.ndim != 1:
        raise StructureError(
            f"{where}: expected {numbers.size} x 3 coordinates and a 3 x 3 lattice, got shapes "
            f"{coords.shape} and {shape}"
        )
    if cell is not None and not np.isfinite(cell).all():
        raise StructureError(f"{where}: a lattice vector is NaN or infinite")
    if (bad := np.flatnonzero(~np.isfinite(coords).all(axis=1))).size:
        raise StructureError(f"{where}: site {bad[0] + 1} has a NaN or infinite coordinate")
    vectors = coords if cell is None else cell
    if (longest := np.abs(vectors).max()) > _LONGEST:
        what = "an atom" if cell is None else "a lattice vector"
        raise StructureError(
            f"{where}: {what} reaches {longest:.3g} Å, expected at most {_LONGEST:g}; is it in Å?"
        )
    if cell is not None and (bad := np.flatnonzero((np.abs(coords) > _FARTHEST).any(axis=1))).size:
        raise StructureError(
            f"{where}: site {bad[0] + 1} lies {_FARTHEST:g} cells away or more; are the "
            "coordinates fractional?"
        )
    volume = np.inf if cell is None else abs(float(np.linalg.det(cell)))
    if volume < _DENSEST * numbers.size:
        raise StructureError(
            f"{where}: the cell has a volume of {volume:.3g} Å^3 for {numbers.size} atoms; is a "
            "lattice vector missing, or the lattice not in Å?"
        )
    if cell is not None:
        _check_flatness(cell, where)
    if (bad := np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))).size:
        raise StructureError(
            f"{where}: site {bad[0] + 1} has atomic number {numbers[bad[0]]}; the networks know 1 "
            f"to {MAX_ATOMIC_NUMBER}"
        )
    if cell is None:
        pos, cell = coords, np.zeros((3, 3))
    else:  # in the cell: the search goes through all cells between the atoms
        pos = (coords - np.floor(coords)) @ cell
    try:
        return _check_distances(pos, cell, where)
    except MemoryError:
        raise StructureError(f"{where}: too little memory for {numbers.size} atoms") from None


def _check_flatness(cell: np.ndarray, where: str) -> None:
    """The search for neighbours goes through all cells near an atom, of flat ones too many."""
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    flat = height < _THINNEST * np.maximum(1, np.linalg.norm(cell, axis=1))
    if flat.any():
        worst = int(np.flatnonzero(flat)[0])
        raise StructureError(
            f"{where}: lattice vector {worst + 1} rises {height[worst]:.2g} Å from the plane "
            "of the other two; is the lattice right, and in Å? (a reduced cell is never so flat)"
        )


def _check_distances(pos: np.ndarray, cell: np.ndarray, where: str) -> list[str]:
    i, j, _, distance = periodic_neighbors(pos, cell, _CLOSE)
    other = np.flatnonzero(distance > 1e-8)  # not the atom itself ...
    same_place = np.flatnonzero((distance <= 1e-8) & (i != j))  # ... but another one on top of it
    closest = same_place if same_place.size else other[np.argsort(distance[other])]
    if closest.size == 0:
        return []
    first, second, d = i[closest[0]], j[closest[0]], distance[closest[0]]
    pair = f"sites {min(first, second) + 1} and {max(first, second) + 1}"
    if first == second:
        pair = f"site {first + 1} and its periodic image"
    if d < _OVERLAP:
        raise StructureError(f"{where}: {pair} overlap ({d:.3g} Å apart)")
    return [f"{pair} are only {d:.2f} Å apart"]


def to_tensors(structure: Structure | Molecule, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """z [N], pos [N, 3] Å (wrapped) and cell [1, 3, 3] Å of a structure; of a molecule it is 0."""
    z = [site.specie.Z for site in structure]
    return tensors_from_arrays(z, *_geometry(structure), dtype)


def tensors_from_arrays(
    z: Sequence[int] | np.ndarray, coords: Any, cell: Any, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """As ``to_tensors``, from atomic numbers [N], fractional coordinates [N, 3], cell [3, 3] Å.

    Without a cell (None), of a molecule, coordinates are Cartesian, Å.
    """
    import torch

    pos = np.array(coords, dtype=np.float64)  # copies: PyTorch wants memory that may be written
    if cell is None:
        cell = np.zeros((3, 3))
    else:
        cell = np.array(cell, dtype=np.float64)
        pos = (pos - np.floor(pos)) @ cell
    return {
        "z": torch.as_tensor(np.asarray(z), dtype=torch.long),
        "pos": torch.as_tensor(pos, dtype=dtype or torch.get_default_dtype()),
        "cell": torch.as_tensor(cell, dtype=dtype or torch.get_default_dtype())[None],
    }


def to_data(tensors: dict[str, Any], y: Sequence[float] = (), id: str = "") -> Data:
    """A torch_geometric ``Data`` with z, pos, cell, y [1, T] (NaN = no label) and id."""
    import torch
    from torch_geometric.data import Data

    return Data(**tensors, y=torch.tensor([list(y)], dtype=torch.float32), id=id)
