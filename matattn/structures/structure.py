"""Structures of crystals and molecules: check them, and turn them into tensors.

Positions are Cartesian, in Å, and wrapped into the cell; the rows of ``cell`` are the lattice
vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import DummySpecies, Molecule, Structure

from matattn.errors import StructureError
from matattn.structures.covalent_radii import covalent_radii
from matattn.structures.neighbors import heights, periodic_neighbors
from matattn.structures.remarks import doubts_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch_geometric.data import Data

MAX_ATOMIC_NUMBER = 98
_OVERLAP = 0.5  # Å between two atoms, or less: an error; in H2 they are 0.74 Å apart
CLOSE = 0.6  # of the sum of covalent radii: a doubt; 8 of 5,157 crystals of Materials Project are
_LONGEST = 1e4  # Å: a lattice vector, or the distance of an atom of a molecule from the origin
_FARTHEST = 1e6  # cells: beyond, the position in the cell has lost its digits
_DENSEST = 1.0  # Å^3 per atom: diamond has 5.7, hydrogen at 5 megabars about 1.5
_THINNEST = 0.01  # Å, and share of a lattice vector, that it rises above the plane of the others
ORDER_IT = (  # what to do about a partial occupancy
    "order it first, for example with pymatgen's OrderDisorderedStructureTransformation"
)


def validate(structure: Structure | Molecule, where: str = "structure") -> list[str]:
    """Check that a structure is a physical crystal, or molecule, of whole atoms of known elements.

    Returns doubts: those from reading it, and atoms closer than 0.6 of the sum of their covalent
    radii. Raises StructureError, beginning with ``where`` and naming the site, for partial
    occupancy, unknown elements, and everything that ``validate_arrays`` refuses.
    """
    for index, site in enumerate(structure):
        name = f"site {index + 1} ({site.species_string})"
        if not site.is_ordered:
            raise StructureError(f"{where}: {name} has partial occupancy; {ORDER_IT}")
        if isinstance(site.specie, DummySpecies):
            raise StructureError(f"{where}: {name} is not a chemical element")
    z = [site.specie.Z for site in structure]
    return doubts_of(structure) + validate_arrays(z, *_geometry(structure), where)


def _geometry(structure: Structure | Molecule) -> tuple[np.ndarray, np.ndarray | None]:
    """Return fractional coordinates and cell, or Cartesian coordinates and None."""
    if isinstance(structure, Molecule):
        return structure.cart_coords, None
    return structure.frac_coords, structure.lattice.matrix


def validate_arrays(z: Sequence[int], coords: Any, cell: Any, where: str) -> list[str]:
    """Check atomic numbers [N], fractional coordinates [N, 3] and cell [3, 3] Å as ``validate``.

    Without a cell (None), of a molecule, coordinates are Cartesian, Å.

    Raises StructureError for: no atoms, wrong shapes, NaN or infinite numbers, a cell without
    volume or nearly flat, elements beyond Z = 98, and atoms closer than 0.5 Å.
    """
    try:
        numbers, coords, cell = _as_arrays(z, coords, cell)
        _check_shapes(numbers, coords, cell)
        _check_finite(coords, cell)
        _check_lengths(coords, cell)
        if cell is not None:
            _check_fractions(coords)
            _check_volume(cell, len(numbers))
            _check_flatness(cell)
        _check_elements(numbers)
        return _check_distances(numbers, *wrapped(coords, cell))
    except StructureError as problem:
        raise StructureError(f"{where}: {problem}") from None


def _as_arrays(z: Any, coords: Any, cell: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return atomic numbers (int64), coordinates and cell (float64)."""
    try:
        raw = np.asarray(z)
        with np.errstate(invalid="ignore"):  # of numbers that are not whole, refused below
            numbers = raw.astype(np.int64)
        coords = np.asarray(coords, dtype=np.float64)
        cell = None if cell is None else np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise StructureError("atoms, coordinates or lattice are not numbers") from None
    if numbers.size == 0:
        raise StructureError("no atoms")
    has_truth_values = not isinstance(z, np.ndarray) and any(isinstance(n, bool) for n in z)
    if raw.dtype.kind not in "iuf" or (raw != numbers).any() or has_truth_values:
        raise StructureError("atomic numbers must be whole numbers")
    return numbers, coords, cell


def _check_shapes(numbers: np.ndarray, coords: np.ndarray, cell: np.ndarray | None) -> None:
    shape = (3, 3) if cell is None else cell.shape
    if coords.shape != (numbers.size, 3) or shape != (3, 3) or numbers.ndim != 1:
        raise StructureError(
            f"expected {numbers.size} x 3 coordinates and a 3 x 3 lattice, got shapes "
            f"{coords.shape} and {shape}"
        )


def _check_finite(coords: np.ndarray, cell: np.ndarray | None) -> None:
    if cell is not None and not np.isfinite(cell).all():
        raise StructureError("a lattice vector is NaN or infinite")
    if (bad := np.flatnonzero(~np.isfinite(coords).all(axis=1))).size:
        raise StructureError(f"site {bad[0] + 1} has a NaN or infinite coordinate")


def _check_lengths(coords: np.ndarray, cell: np.ndarray | None) -> None:
    what, vectors = ("an atom", coords) if cell is None else ("a lattice vector", cell)
    if (longest := np.abs(vectors).max()) > _LONGEST:
        raise StructureError(
            f"{what} reaches {longest:.3g} Å, expected at most {_LONGEST:g}; is it in Å?"
        )


def _check_fractions(coords: np.ndarray) -> None:
    if (bad := np.flatnonzero((np.abs(coords) > _FARTHEST).any(axis=1))).size:
        raise StructureError(
            f"site {bad[0] + 1} lies {_FARTHEST:g} cells away or more; are the coordinates "
            "fractional?"
        )


def _check_volume(cell: np.ndarray, atoms: int) -> None:
    if (volume := abs(float(np.linalg.det(cell)))) < _DENSEST * atoms:
        raise StructureError(
            f"the cell has a volume of {volume:.3g} Å^3 for {atoms} atoms; is a lattice vector "
            "missing, or the lattice not in Å?"
        )


def _check_flatness(cell: np.ndarray) -> None:
    """Refuse flat cells: the search for neighbours would go through too many of them."""
    height = heights(cell)
    flat = height < _THINNEST * np.maximum(1, np.linalg.norm(cell, axis=1))
    if flat.any():
        worst = int(np.flatnonzero(flat)[0])
        raise StructureError(
            f"lattice vector {worst + 1} rises {height[worst]:.2g} Å from the plane of the other "
            "two; is the lattice right, and in Å? (a reduced cell is never so flat)"
        )


def _check_elements(numbers: np.ndarray) -> None:
    if (bad := np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))).size:
        raise StructureError(
            f"site {bad[0] + 1} has atomic number {numbers[bad[0]]}; the networks know 1 to "
            f"{MAX_ATOMIC_NUMBER}"
        )


def _check_distances(numbers: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> list[str]:
    """Return a doubt for the closest pair of atoms if it is suspicious; refuse an overlap."""
    radii = covalent_radii()[numbers]
    try:
        i, j, _, distance = periodic_neighbors(pos, cell, max(_OVERLAP, CLOSE * 2 * radii.max()))
    except MemoryError:
        raise StructureError(f"too little memory for {len(pos)} atoms") from None
    other = (distance > 1e-8) | (i != j)  # not the atom itself, but another one on top of it
    i, j, distance = i[other], j[other], distance[other]
    share = distance / (radii[i] + radii[j])
    if share.size == 0 or (share.min() >= CLOSE and distance.min() >= _OVERLAP):
        return []
    closest = distance.argmin() if distance.min() < _OVERLAP else share.argmin()
    first, second, d = i[closest], j[closest], distance[closest]
    pair = f"sites {min(first, second) + 1} and {max(first, second) + 1}"
    if first == second:
        pair = f"site {first + 1} and its periodic image"
    if d < _OVERLAP:
        raise StructureError(f"{pair} overlap ({d:.3g} Å apart)")
    return [f"{pair} are only {d:.2f} Å apart"]


def wrapped(coords: np.ndarray, cell: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return Cartesian positions, wrapped into the cell, and the cell; of a molecule it is zero."""
    if cell is None:
        return coords, np.zeros((3, 3))
    return (coords - np.floor(coords)) @ cell, cell


def to_tensors(
    structure: Structure | Molecule, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return z [N], pos [N, 3] Å (wrapped) and cell [1, 3, 3] Å, which is 0 of a molecule."""
    z = [site.specie.Z for site in structure]
    return tensors_from_arrays(z, *_geometry(structure), dtype)


def tensors_from_arrays(
    z: Sequence[int] | np.ndarray, coords: Any, cell: Any, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Convert atomic numbers [N], fractional coordinates [N, 3] and cell [3, 3] Å to tensors.

    Without a cell (None), of a molecule, coordinates are Cartesian, Å.
    """
    import torch

    # Copies, because PyTorch needs memory that may be written.
    cell = None if cell is None else np.array(cell, dtype=np.float64)
    pos, cell = wrapped(np.array(coords, dtype=np.float64), cell)
    return {
        "z": torch.as_tensor(np.asarray(z), dtype=torch.long),
        "pos": torch.as_tensor(pos, dtype=dtype or torch.float32),
        "cell": torch.as_tensor(cell, dtype=dtype or torch.float32)[None],
    }


def to_data(tensors: dict[str, Tensor], y: Sequence[float] = (), id: str = "") -> Data:
    """Return a torch_geometric ``Data`` with z, pos, cell, y [1, T] (NaN = no label) and id."""
    import torch
    from torch_geometric.data import Data

    return Data(**tensors, y=torch.tensor([list(y)], dtype=torch.float32), id=id)
