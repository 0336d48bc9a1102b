"""Neighbour lists of symmetry-equivalent atoms, for networks of elements and distances only.

Equivalent atoms have equal surroundings, so such a network gives them equal features in every
layer. One row per orbit is enough if pooling weights it with its number of atoms, and if the images
of an orbit at one distance enter the attention with the logarithm of their number. This is exact.
Work then grows with the asymmetric unit, and a supercell costs what its primitive cell costs.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import spglib

from matattn.structures import harmonics
from matattn.structures.neighbors import Neighbors, periodic_neighbors

# A search that fails means no symmetry here; spglib would also report it on stderr.
os.environ.setdefault("SPGLIB_WARNING", "OFF")


def space_group(z: np.ndarray, frac: np.ndarray, cell: np.ndarray, tolerance: float) -> Any:
    """Return spglib's data set of a crystal, or None where it finds no symmetry.

    z [N], fractional coordinates [N, 3], cell [3, 3] Å, tolerance in Å.
    """
    crystal: Any = (cell, frac, z)
    with warnings.catch_warnings():  # spglib announces that None will become an exception
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return spglib.get_symmetry_dataset(crystal, tolerance)
        except spglib.SpglibError:
            return None


def orbits(z: np.ndarray, pos: np.ndarray, cell: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the orbit [N] of each atom under the space group, numbered by their first atoms.

    z [N], pos [N, 3] Å, cell [3, 3] Å. ``tolerance`` is how far an atom may be from its symmetric
    position, Å. Translations within a supercell count. Where spglib finds no symmetry, every atom
    is an orbit of its own.
    """
    dataset = space_group(z, pos @ np.linalg.inv(cell), cell, tolerance)
    if dataset is None:
        return np.arange(len(z))
    _, first, orbit = np.unique(
        dataset.crystallographic_orbits, return_index=True, return_inverse=True
    )
    return first.argsort().argsort()[orbit]


def reduced_neighbors(
    z: np.ndarray,
    pos: np.ndarray,
    cell: np.ndarray,
    cutoff: float,
    tolerance: float,
    degree: int = 0,
) -> Neighbors:
    """Return the neighbour list of one atom of each orbit; ``tolerance`` is in Å.

    With a ``degree``, it has the mean spherical harmonics of the images that are merged.

    The orbits of the space group are a proposal. They are used if every atom has the same distances
    to all orbits, within ``tolerance``, as the atom that represents it; otherwise every atom keeps
    its own row.
    """
    target, source, image, distance = periodic_neighbors(pos, cell, cutoff)
    atom = source
    orbit = orbits(np.asarray(z), pos, cell, tolerance)
    order, *shells = _sorted(target, orbit[source], distance)
    if not _agree(orbit, shells[0], shells[1], shells[2], cutoff, tolerance):
        orbit = np.arange(len(pos))
        order, *shells = _sorted(target, source, distance)
    atoms = np.unique(orbit, return_index=True)[1]
    chosen = np.isin(shells[0], atoms)
    target, source, distance = (values[chosen] for values in shells)
    order = order[chosen]
    new = (np.diff(target) != 0) | (np.diff(source) != 0) | (np.diff(distance) > tolerance)
    first = np.flatnonzero(np.concatenate([[True], new]))
    size = np.diff(np.append(first, len(target)))
    directions = None
    if degree:
        vectors = pos[atom[order]] + image[order] @ cell - pos[target]
        found = harmonics.of_vectors(vectors, degree)
        directions = np.add.reduceat(found, first) / size[:, None]
    return Neighbors(
        atoms=atoms.astype(np.int32),
        orbit_size=np.bincount(orbit).astype(np.int32),
        counts=np.bincount(target[first], minlength=len(pos))[atoms].astype(np.int32),
        source=source[first].astype(np.int32),
        distance=np.add.reduceat(distance, first) / size,
        multiplicity=size.astype(np.float32),
        harmonics=directions,
    )


def _sorted(
    target: np.ndarray, source: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((distance, source, target))
    return order, target[order], source[order], distance[order]


def _agree(
    orbit: np.ndarray,
    target: np.ndarray,
    source: np.ndarray,
    distance: np.ndarray,
    cutoff: float,
    tolerance: float,
) -> bool:
    """Return whether all atoms of an orbit have the same distances to every orbit.

    ``source`` are orbits, and the list is sorted. An image at the edge of the sphere may be missing
    in the list of one of two equivalent atoms.
    """
    number = orbit.max() + 1
    if number == len(orbit):
        return True
    pair = target * number + source  # of atom a and orbit c: a * number + c
    start = np.searchsorted(pair, np.arange(len(orbit) * number + 1))
    twin = np.unique(orbit, return_index=True)[1][orbit]  # the atom that represents each atom
    rank = np.arange(len(target)) - start[pair]
    twin_pair = twin[target] * number + source
    index = start[twin_pair] + rank
    inside = distance <= cutoff - tolerance
    missing = index >= start[twin_pair + 1]
    if (missing & inside).any():
        return False
    index[missing] = np.flatnonzero(missing)
    if (np.abs(distance[index] - distance) > tolerance).any():
        return False
    size = np.diff(start).reshape(-1, number)
    needed = np.bincount(pair[inside], minlength=size.size).reshape(size.shape)
    return bool((size >= needed[twin]).all())
