"""The rule of a network for the periodic images that an atom attends to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from matattn.structures import harmonics
from matattn.structures.neighbors import Neighbors, boxed_neighbors, periodic_neighbors
from matattn.structures.symmetry import reduced_neighbors

LARGEST_SYMMETRY = 0.01  # Å: beyond it, neighbouring shells of a crystal would merge


@dataclass(frozen=True)
class ImageRule:
    """A rule for the images that are summed.

    ``box=False``: all images within ``cutoff`` Å of the atom. ``box=True``: all images
    ``|n_t| <= max(ceil(cutoff |b_t| / 2 pi), 2)`` of the positions in the cell, the rule of the
    published code (``cutoff=0`` is its fixed range of 2).

    ``symmetry`` > 0 merges symmetry-equivalent atoms into one row, and images of one row at one
    distance into one neighbour, where distances agree within so many Å
    (``matattn.structures.symmetry``). A network of distances gives the same output, but not as a
    function of the positions: forces need ``symmetry=0``.

    ``degree`` > 0 also keeps the spherical harmonics of the directions up to this degree, the mean
    of those images that are merged. Without symmetry they follow from the positions.
    """

    cutoff: float
    box: bool = False
    symmetry: float = 0.0
    degree: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.symmetry <= LARGEST_SYMMETRY:
            raise ValueError(f"symmetry={self.symmetry} Å: expected 0 to {LARGEST_SYMMETRY}")
        if self.box and self.symmetry:
            raise ValueError("boxes of images do not have the symmetry of the crystal")
        if not 0 <= self.degree <= harmonics.MOST:
            raise ValueError(f"degree={self.degree}: expected 0 to {harmonics.MOST}")

    def __call__(self, z: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> Neighbors:
        """Return the neighbour list of atoms ``z`` [N] at ``pos`` [N, 3] Å in ``cell`` [3, 3] Å.

        A molecule has a cell of zeros; its symmetry is not used.
        """
        pos, cell = np.asarray(pos, dtype=np.float64), np.asarray(cell, dtype=np.float64)
        if self.box and not cell.any():
            raise ValueError("boxes of images need a cell, and a molecule has none")
        if self.symmetry and cell.any():
            return reduced_neighbors(z, pos, cell, self.cutoff, self.symmetry, self.degree)
        search = boxed_neighbors if self.box else periodic_neighbors
        target, source, image, distance = search(pos, cell, self.cutoff)
        order = np.lexsort((source, target))
        small = np.abs(image).max(initial=0) < 2**15
        directions = None
        if self.symmetry and self.degree:
            vectors = (pos[source] - pos[target])[order]  # of a molecule
            directions = harmonics.of_vectors(vectors, self.degree)
        return Neighbors(
            atoms=np.arange(len(pos), dtype=np.int32),
            orbit_size=np.ones(len(pos), dtype=np.int32),
            counts=np.bincount(target, minlength=len(pos)).astype(np.int32),
            source=source[order].astype(np.int32),
            distance=distance[order],
            image=image[order].astype(np.int16 if small else np.int32),
            multiplicity=np.ones(len(order), dtype=np.float32) if self.symmetry else None,
            harmonics=directions,
        )
