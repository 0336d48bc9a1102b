"""Which periodic images an atom attends to: neighbour lists of crystals, and of molecules.

A list is sorted by target row i, then by source row j. A row is an atom, or an orbit of
symmetry-equivalent atoms. The atom's own place (j = i, image 0, distance 0) is in the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pymatgen.core import Lattice
from pymatgen.optimization.neighbors import find_points_in_spheres


@dataclass(frozen=True)
class Neighbors:
    """Neighbour list of one crystal, in arrays small enough to keep for a whole data set.

    ``source`` j and ``distance`` of a row's neighbours follow each other, ``counts`` of them for
    each row. Without symmetry, row i is atom i and source j sits at ``pos[j] + image @ cell``;
    with symmetry, ``atoms`` names one atom of each orbit and ``image`` is None.
    """

    atoms: np.ndarray  # [R] int32, the atom that stands for each row
    orbit_size: np.ndarray  # [R] int32, how many atoms a row stands for
    counts: np.ndarray  # [R] int32, neighbours of each row
    source: np.ndarray  # [E] int32, row of each neighbour
    distance: np.ndarray  # [E] float64, Å
    multiplicity: np.ndarray | None = None  # [E] float32, images at this distance; None: one each
    image: np.ndarray | None = None  # [E, 3] int16, of very sheared cells int32


# Product of a cell's sides over its volume: 1.2 of hexagonal cells, 1.4 of face-centred ones.
# pymatgen's search goes through all cells between the atoms, and the corners of a more sheared one.
MOST_SHEARED = 1.5
MOST_BINS = 1e6  # pymatgen takes about 240 bytes for each
SELF = 1e-3  # Å: a neighbour nearer than that is the atom's own place, with whatever rounding
LARGEST_SYMMETRY = 0.01  # Å: beyond it, shells of one crystal would run into each other


@dataclass(frozen=True)
class ImageRule:
    """Which images are summed.

    ``box=False``: all images within ``cutoff`` Å of the atom. ``box=True``: all images
    |n_t| <= max(ceil(cutoff |b_t| / 2 pi), 2) of positions as they stand in the cell, the rule of
    the published code (``cutoff=0`` is its fixed range of 2).

    ``symmetry`` > 0 lets symmetry-equivalent atoms stand as one row, and images of one row at one
    distance as one neighbour, where distances agree within so many Å (``matattn.symmetry``). That
    changes nothing that a network of distances sees, but positions have no part in it: forces need
    ``symmetry=0``.
    """

    cutoff: float
    box: bool = False
    symmetry: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.symmetry <= LARGEST_SYMMETRY:
            raise ValueError(f"symmetry={self.symmetry} Å: expected 0 to {LARGEST_SYMMETRY}")
        if self.box and self.symmetry:
            raise ValueError("boxes of images do not have the symmetry of the crystal")

    def __call__(self, z: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> Neighbors:
        """Neighbour list of atoms ``z`` [N] at ``pos`` [N, 3] Å in ``cell`` [3, 3] Å.

        A molecule has a cell of zeros. Symmetry is not looked for in it.
        """
        pos, cell = np.asarray(pos, dtype=np.float64), np.asarray(cell, dtype=np.float64)
        if self.box and not cell.any():
            raise ValueError("boxes of images need a cell, and a molecule has none")
        if self.symmetry and cell.any():
            from matattn.symmetry import reduced_neighbors

            return reduced_neighbors(z, pos, cell, self.cutoff, self.symmetry)
        search = _box if self.box else periodic_neighbors
        target, source, image, distance = search(pos, cell, self.cutoff)
        order = np.lexsort((source, target))
        small = np.abs(image).max(initial=0) < 2**15
        return Neighbors(
            atoms=np.arange(len(pos), dtype=np.int32),
            orbit_size=np.ones(len(pos), dtype=np.int32),
            counts=np.bincount(target, minlength=len(pos)).astype(np.int32),
            source=source[order].astype(np.int32),
            distance=distance[order],
            image=image[order].astype(np.int16 if small else np.int32),
            multiplicity=np.ones(len(order), dtype=np.float32) if self.symmetry else None,
        )


class HasImageRule(Protocol):
    """What every network of crystals offers beside ``forward``: the images that it needs."""

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule: ...


def periodic_neighbors(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Target i, source j, image and distance of all images within ``cutoff`` Å.

    A cell of zeros has no images but the atoms themselves. Shapes [E], [E], [E, 3] and [E] (Å).
    """
    if not cell.any():
        return _search(pos, cell, cutoff)
    volume, basis = abs(np.linalg.det(cell)), np.eye(3)
    if np.prod(np.linalg.norm(cell, axis=1)) > MOST_SHEARED * volume:
        basis = np.rint(Lattice(cell).lll_mapping)  # whole numbers
    compact = basis @ cell
    moved = -np.rint(pos @ np.linalg.inv(compact) - 0.5)  # cells, to be in the compact one
    target, source, image, distance = _search(pos + moved @ compact, compact, cutoff)
    image = (image + moved[source] - moved[target]) @ basis
    return target, source, image.astype(np.int64), distance


def _search(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    width = _bin_width(pos, cell, cutoff)
    if width > cutoff:  # pymatgen's bins are as wide as the cutoff, and empty ones cost as others
        found = _search(pos, cell, width)
        near = found[3] <= cutoff
        return found[0][near], found[1][near], found[2][near], found[3][near]
    pos, cell = np.ascontiguousarray(pos), np.ascontiguousarray(cell)
    periodic = np.full(3, cell.any(), dtype=np.int64)
    if not cell.any():
        cell = np.eye(3)
    target, source, image, distance = find_points_in_spheres(
        pos, pos, r=float(cutoff), pbc=periodic, lattice=cell, tol=1e-8
    )
    return target, source, np.rint(image).astype(np.int64), distance


def _bin_width(pos: np.ndarray, cell: np.ndarray, cutoff: float) -> float:
    """``cutoff``, Å, doubled until bins of this width are at most ``MOST_BINS``."""
    sides = np.linalg.norm(cell, axis=1) if cell.any() else np.ptp(pos, axis=0)
    width = max(cutoff, 0.1)  # pymatgen's smallest
    while np.prod(sides / width + 2) > MOST_BINS:  # with a layer around, also of a flat molecule
        width *= 2
    return width


def _box(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    planes = np.linalg.norm(np.linalg.inv(cell), axis=0)
    half = np.maximum(np.ceil(cutoff * planes), 2).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)
    images = grid.reshape(-1, 3)
    atoms = len(pos)
    vectors = pos[None, :, None] + images @ cell - pos[:, None, None]
    target, source, n = np.indices((atoms, atoms, len(images))).reshape(3, -1)
    return target, source, images[n], np.linalg.norm(vectors, axis=-1).ravel()
