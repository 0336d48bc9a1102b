"""Elastic constants that the labels of strained crystals in a data set imply."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from matattn.potentials.dataset import VOIGT, Frame

FEWEST = 20  # strained cells of one crystal
STILL = 0.05  # Å: atoms that go along with the strain
LARGEST = 0.1  # of strains, as angles


def strained_crystals(frames: Sequence[Frame]) -> tuple[list[int], np.ndarray]:
    """Return the frames that are one crystal under strains, and these strains [n, 6].

    All have a stress, and atoms where the strain takes those of the frame with the least stress;
    none where fewer than ``FEWEST`` are. Voigt's order xx yy zz yz xz xy, with shears as angles.
    """
    alike = defaultdict(list)
    for row, frame in enumerate(frames):
        if frame.cell.any() and not np.isnan(frame.stress).any():
            alike[frame.z.tobytes()].append(row)
    for rows in sorted(alike.values(), key=len, reverse=True):
        places = np.stack([np.linalg.solve(frames[r].cell.T, frames[r].pos.T).T for r in rows])
        for rest in sorted(rows, key=lambda r: float(np.abs(frames[r].stress).max())):
            moved = places - places[rows.index(rest)]
            moved -= np.rint(moved)
            far = np.linalg.norm(moved @ frames[rest].cell, axis=2).max(1)
            found = [row for row, distance in zip(rows, far, strict=True) if distance < STILL]
            if len(found) >= FEWEST:
                deformed = [np.linalg.solve(frames[rest].cell, frames[r].cell) for r in found]
                strains = np.array([((d + d.T) / 2 - np.eye(3))[VOIGT] for d in deformed])
                strains[:, 3:] *= 2
                return found, strains
    return [], np.empty((0, 6))


def stiffness(strains: np.ndarray, stresses: np.ndarray) -> np.ndarray | None:
    """Return C [6, 6] by least squares over strains [n, 6] and stresses [n, 3, 3].

    Squares and cubes of the strains are fitted too. None where the strains do not tell them.
    """
    near = np.abs(strains).max(1) < LARGEST + 1e-6
    strains, values = strains[near], stresses[near][:, VOIGT[0], VOIGT[1]]
    terms = np.concatenate([np.ones((len(strains), 1)), strains, strains**2, strains**3], 1)
    sizes = np.abs(terms).max(0, initial=1e-12)
    fit, _, rank, _ = np.linalg.lstsq(terms / sizes, values, rcond=1e-6)
    return (fit / sizes[:, None])[1:7].T if rank == terms.shape[1] else None


def cubic(constants: np.ndarray) -> tuple[float, float, float]:
    """Return the means of C11, C12 and C44 over the three axes."""
    upper = constants[:3, :3]
    return (
        float(np.trace(upper)) / 3,
        float(upper.sum() - np.trace(upper)) / 6,
        float(np.trace(constants[3:, 3:])) / 3,
    )
