"""Neighbour lists of crystals and molecules: the periodic images that an atom attends to.

A list is sorted by target row i, then by source row j. A row is an atom, or an orbit of
symmetry-equivalent atoms. The atom itself (j = i, image 0, distance 0) is in the list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from pymatgen.core import Lattice
from pymatgen.optimization.neighbors import find_points_in_spheres


@dataclass(frozen=True)
class Neighbors:
    """The neighbour list of one crystal, in arrays small enough to keep for a whole data set.

    ``source`` j and ``distance`` hold the ``counts`` neighbours of the first row, then those of the
    next. Without symmetry, row i is atom i and source j is at ``pos[j] + image @ cell``; with
    symmetry, ``atoms`` names one atom of each orbit and ``image`` is None.
    """

    atoms: np.ndarray  # [R] int32, the atom that stands for each row
    orbit_size: np.ndarray  # [R] int32, how many atoms a row stands for
    counts: np.ndarray  # [R] int32, neighbours of each row
    source: np.ndarray  # [E] int32, row of each neighbour
    distance: np.ndarray  # [E] float64, Å
    multiplicity: np.ndarray | None = None  # [E] float32, images at this distance; None: one each
    image: np.ndarray | None = None  # [E, 3] int16, of very sheared cells int32
    harmonics: np.ndarray | None = None  # [E, F] mean over the images, of an ImageRule's degree

    def to_keep(self) -> Neighbors:
        """Return the list with harmonics in single precision, which are most of its numbers."""
        if self.harmonics is None:
            return self
        return replace(self, harmonics=self.harmonics.astype(np.float32))


# Product of a cell's sides over its volume: 1.2 of hexagonal cells, 1.4 of face-centred ones.
# pymatgen's search visits all cells between the atoms, and too many around a more sheared one.
MOST_SHEARED = 1.5
MOST_BINS = 1e6  # pymatgen takes about 240 bytes for each
SELF = 1e-3  # Å: a neighbour nearer than that is the atom itself, whatever the rounding


def periodic_neighbors(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return target i, source j, image and distance of all images within ``cutoff`` Å.

    A cell of zeros has no images but the atoms themselves. Shapes [E], [E], [E, 3] and [E] (Å).
    """
    if not cell.any():
        return _search(pos, cell, cutoff)
    basis = compact_basis(cell)
    compact = basis @ cell
    moved = -np.rint(pos @ np.linalg.inv(compact) - 0.5)  # lattice vectors into the compact cell
    target, source, image, distance = _search(pos + moved @ compact, compact, cutoff)
    image = (image + moved[source] - moved[target]) @ basis
    return target, source, image.astype(np.int64), distance


def compact_basis(cell: np.ndarray) -> np.ndarray:
    """Return whole numbers [3, 3] by which ``cell`` becomes one that is hardly sheared."""
    return _compact_basis(np.ascontiguousarray(cell, dtype=np.float64).tobytes())


@lru_cache(maxsize=64)  # checks, vacuum and lists ask for the same crystal
def _compact_basis(content: bytes) -> np.ndarray:
    cell = np.frombuffer(content).reshape(3, 3)
    volume, basis = abs(np.linalg.det(cell)), np.eye(3)
    if np.prod(np.linalg.norm(cell, axis=1)) > MOST_SHEARED * volume:
        basis = np.rint(Lattice(cell).lll_mapping)
    basis.setflags(write=False)  # it is shared
    return basis


def _search(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    width = _bin_width(pos, cell, cutoff)
    if width > cutoff and _has_one_image(cell, cutoff):
        return _tree_search(pos, cell, cutoff)
    if width > cutoff:  # pymatgen's bins are as wide as the cutoff, and empty ones cost as others
        target, source, image, distance = _search(pos, cell, width)
        near = distance <= cutoff
        return target[near], source[near], image[near], distance[near]
    pos, cell = np.ascontiguousarray(pos), np.ascontiguousarray(cell)
    periodic = np.full(3, cell.any(), dtype=np.int64)
    if not cell.any():
        cell = np.eye(3)
    target, source, image, distance = find_points_in_spheres(
        pos, pos, r=float(cutoff), pbc=periodic, lattice=cell, tol=1e-8
    )
    return target, source, np.rint(image).astype(np.int64), distance


def _has_one_image(cell: np.ndarray, cutoff: float) -> bool:
    """Return whether at most one image of an atom is within ``cutoff`` Å of any place."""
    return not cell.any() or bool((2 * np.sqrt(3) * cutoff < heights(cell)).all())


def heights(cell: np.ndarray) -> np.ndarray:
    """Return the distances [3] of the faces of a cell, Å."""
    return 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def _tree_search(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Search where few atoms are in much empty space, so that bins would be too many or too full.

    Along the heights of a cell, atoms within ``cutoff`` are at most sqrt(3) times as far apart.
    """
    from scipy.spatial import cKDTree

    if cell.any():
        frac, sides = pos @ np.linalg.inv(cell), heights(cell)
        places = frac % 1 % 1 * sides  # twice: -1e-17 % 1 is 1
        tree = cKDTree(np.minimum(places, np.nextafter(sides, 0)), boxsize=sides)
        pairs = tree.query_pairs(np.sqrt(3) * cutoff, output_type="ndarray")
    else:
        frac, pairs = pos, cKDTree(pos).query_pairs(cutoff, output_type="ndarray")
    itself = np.repeat(np.arange(len(pos))[:, None], 2, axis=1)
    target, source = np.concatenate([pairs, pairs[:, ::-1], itself]).T
    image = -np.rint(frac[source] - frac[target]) if cell.any() else np.zeros((len(target), 3))
    distance = np.linalg.norm(pos[source] + image @ cell - pos[target], axis=1)
    near = distance <= cutoff
    order = np.lexsort((source[near], target[near]))
    found = (array[near][order] for array in (target, source, image.astype(np.int64), distance))
    target, source, image, distance = found
    return target, source, image, distance


def _bin_width(pos: np.ndarray, cell: np.ndarray, cutoff: float) -> float:
    """Return ``cutoff``, Å, doubled until there are at most ``MOST_BINS`` bins of this width."""
    sides = np.linalg.norm(cell, axis=1) if cell.any() else np.ptp(pos, axis=0)
    width = max(cutoff, 0.1)  # pymatgen's smallest
    while np.prod(sides / width + 2) > MOST_BINS:  # with a layer around, also of a flat molecule
        width *= 2
    return width


def boxed_neighbors(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return target i, source j, image and distance of the published boxes, see ``ImageRule``.

    Shapes [E], [E], [E, 3] and [E] (Å).
    """
    planes = np.linalg.norm(np.linalg.inv(cell), axis=0)
    half = np.maximum(np.ceil(cutoff * planes), 2).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), -1)
    images = grid.reshape(-1, 3)
    atoms = len(pos)
    vectors = pos[None, :, None] + images @ cell - pos[:, None, None]
    target, source, n = np.indices((atoms, atoms, len(images))).reshape(3, -1)
    return target, source, images[n], np.linalg.norm(vectors, axis=-1).ravel()
