"""Symmetry-equivalent atoms as one: exact for networks that see elements and distances only.

Equivalent atoms have equal surroundings, so such a network gives them equal features in every
layer. One row per orbit is enough, if pooling counts it as often as it stands for an atom, and if
the images of an orbit at one distance enter the attention with the logarithm of their number. Work
then grows with the asymmetric unit, and a supercell costs what its primitive cell costs.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import spglib

from matattn.structures.neighbors import Neighbors, periodic_neighbors

# A search that fails means no symmetry here; spglib would also write about it to stderr.
os.environ.setdefault("SPGLIB_WARNING", "OFF")


def orbits(z: np.ndarray, pos: np.ndarray, cell: np.ndarray, tolerance: float) -> np.ndarray:
    """Orbit [N] of each atom under the crystal's space group, numbered by their first atoms.

    z [N], pos [N, 3] Å, cell [3, 3] Å. ``tolerance`` is how far an atom may be from its symmetric
    place, Å. Translations within a supercell count. Where spglib finds no symmetry, every atom is
    an orbit of its own.
    """
    crystal: Any = (cell, pos @ np.linalg.inv(cell), z)
    with warnings.catch_warnings():  # spglib announces that None will become an exception
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            dataset = spglib.get_symmetry_dataset(crystal, tolerance)
        except spglib.SpglibError:
            dataset = None
    if dataset is None:
        return np.arange(len(z))
    _, first, orbit = np.unique(
        dataset.crystallographic_orbits, return_index=True, return_inverse=True
    )
    return first.argsort().argsort()[orbit]


def reduced_neighbors(
    z: np.ndarray, pos: np.ndarray, cell: np.ndarray, cutoff: float, tolerance: float
) -> Neighbors:
    """Neighbour list of one atom of each orbit; distances within ``tolerance`` Å count as equal.

    The space group only proposes. Its orbits are used where every atom has the distances of the
    one that stands for it, to all orbits and within ``tolerance``; otherwise all atoms keep their
    own row.
    """
    found = periodic_neighbors(pos, cell, cutoff)
    target, source, distance = found[0], found[1], found[3]
    orbit = orbits(np.asarray(z), pos, cell, tolerance)
    shells = _sorted(target, orbit[source], distance)
    if not _agree(orbit, *shells, cutoff, tolerance):
        orbit = np.arange(len(pos))
        shells = _sorted(target, source, distance)
    atoms = np.unique(orbit, return_index=True)[1]
    chosen = np.isin(shells[0], atoms)
    target, source, distance = (values[chosen] for values in shells)
    new = (np.diff(target) != 0) | (np.diff(source) != 0) | (np.diff(distance) > tolerance)
    first = np.flatnonzero(np.concatenate([[True], new]))
    size = np.diff(np.append(first, len(target)))
    return Neighbors(
        atoms=atoms.astype(np.int32),
        orbit_size=np.bincount(orbit).astype(np.int32),
        counts=np.bincount(target[first], minlength=len(pos))[atoms].astype(np.int32),
        source=source[first].astype(np.int32),
        distance=np.add.reduceat(distance, first) / size,
        multiplicity=size.astype(np.float32),
    )


def _sorted(
    target: np.ndarray, source: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((distance, source, target))
    return target[order], source[order], distance[order]


def _agree(
    orbit: np.ndarray,
    target: np.ndarray,
    source: np.ndarray,
    distance: np.ndarray,
    cutoff: float,
    tolerance: float,
) -> bool:
    """Whether all atoms of an orbit have the same distances to every orbit.

    ``source`` are orbits, and the list is sorted. An image at the edge of the sphere may be missing
    in the list of one of two equivalent atoms.
    """
    number = orbit.max() + 1
    if number == len(orbit):
        return True
    pairs = np.arange(len(orbit) * number + 1)
    start = np.searchsorted(
        target * number + source, pairs
    )  # of atom a and orbit c: a * number + c
    twin = np.unique(orbit, return_index=True)[1][orbit]  # the atom that stands for each atom
    rank = np.arange(len(target)) - start[target * number + source]
    pair = twin[target] * number + source
    place = start[pair] + rank
    inside = distance <= cutoff - tolerance
    missing = place >= start[pair + 1]
    if (missing & inside).any():
        return False
    place[missing] = np.flatnonzero(missing)
    if (np.abs(distance[place] - distance) > tolerance).any():
        return False
    size = np.diff(start).reshape(-1, number)
    needed = np.bincount((target * number + source)[inside], minlength=size.size).reshape(
        size.shape
    )
    return bool((size >= needed[twin]).all())
