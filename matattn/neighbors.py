"""Which periodic images an atom attends to: neighbour lists of crystals.

A list is sorted by target atom i, then by source atom j. Source j of an edge sits at
``pos[j] + image @ cell``; the atom's own place (j = i, image 0, distance 0) is in the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pymatgen.optimization.neighbors import find_points_in_spheres


@dataclass(frozen=True)
class Neighbors:
    """Neighbour list of one crystal: the arrays as PyTorch Geometric names them."""

    edge_index: np.ndarray  # [2, E] int64, row 0 source j, row 1 target i
    image: np.ndarray  # [E, 3] int64
    multiplicity: np.ndarray  # [E] float32, how many images an edge stands for


@dataclass(frozen=True)
class ImageRule:
    """Which images are summed.

    ``box=False``: all images within ``cutoff`` Å of the atom. ``box=True``: all images
    |n_t| <= max(ceil(cutoff |b_t| / 2 pi), 2) of positions as they stand in the cell, the rule of
    the published code (``cutoff=0`` is its fixed range of 2).

    ``merge`` > 0 lets images of one atom whose distances agree within so many Å stand as one edge
    with a multiplicity. Distances fix everything that a distance-only network sees, so its output
    does not change beyond that tolerance; derivatives by positions would, so forces need 0.
    """

    cutoff: float
    box: bool = False
    merge: float = 0.0

    def __call__(self, pos: np.ndarray, cell: np.ndarray) -> Neighbors:
        """Neighbour list of atoms at ``pos`` [N, 3] Å in ``cell`` [3, 3] Å."""
        pos, cell = np.asarray(pos, dtype=np.float64), np.asarray(cell, dtype=np.float64)
        if self.box:
            target, source, image, distance = _box(pos, cell, self.cutoff)
        else:
            target, source, image, distance = periodic_neighbors(pos, cell, self.cutoff)
        if self.merge > 0:
            return _merged(target, source, image, distance, self.merge)
        order = np.lexsort((source, target))
        edge_index = np.stack([source[order], target[order]])
        return Neighbors(edge_index, image[order], np.ones(len(order), dtype=np.float32))


class HasImageRule(Protocol):
    """What every network of crystals offers beside ``forward``: the images that it needs."""

    def image_rule(self, tolerance: float, merge: float = 0.0) -> ImageRule: ...


def periodic_neighbors(
    pos: np.ndarray, cell: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Target i, source j, image and distance of all images within ``cutoff`` Å.

    Shapes [E], [E], [E, 3] and [E] (Å).
    """
    pos, cell = np.ascontiguousarray(pos), np.ascontiguousarray(cell)
    periodic = np.ones(3, dtype=np.int64)
    target, source, image, distance = find_points_in_spheres(
        pos, pos, r=float(cutoff), pbc=periodic, lattice=cell, tol=1e-8
    )
    return target, source, np.rint(image).astype(np.int64), distance


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


def _merged(
    target: np.ndarray,
    source: np.ndarray,
    image: np.ndarray,
    distance: np.ndarray,
    tolerance: float,
) -> Neighbors:
    order = np.lexsort((distance, source, target))
    target, source, distance = target[order], source[order], distance[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(target) != 0) | (np.diff(source) != 0) | (np.diff(distance) > tolerance)
    first = np.flatnonzero(new)
    size = np.diff(np.append(first, len(order)))
    middle = first + size // 2  # the median distance stands for its group
    edge_index = np.stack([source[middle], target[middle]])
    return Neighbors(edge_index, image[order][middle], size.astype(np.float32))
