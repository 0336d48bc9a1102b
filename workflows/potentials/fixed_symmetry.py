"""The space group of a crystal, and forces and stresses made exactly symmetric by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from pymatgen.core import Structure

from matattn.structures.symmetry import space_group


@dataclass(frozen=True)
class SpaceGroup:
    """Operations x -> W x + t of fractional coordinates, and the atom that each makes of each."""

    symbol: str
    rotations: Int[np.ndarray, "operations 3 3"]  # W
    translations: Float[np.ndarray, "operations 3"]  # t
    becomes: Int[np.ndarray, "operations atoms"]

    @classmethod
    def of(cls, structure: Structure, tolerance: float) -> SpaceGroup:
        """Return the space group of a crystal, with spglib's ``tolerance`` in Å."""
        places, cell = structure.frac_coords, structure.lattice.matrix
        found = space_group(np.array(structure.atomic_numbers), places, cell, tolerance)
        if found is None:
            nothing = np.eye(3, dtype=int)[None], np.zeros((1, 3))
            return cls("P1", *nothing, np.arange(len(places))[None])
        becomes = []
        for rotation, translation in zip(found.rotations, found.translations, strict=True):
            away = (places @ rotation.T + translation)[:, None] - places
            distance = np.linalg.norm((away - away.round()) @ cell, axis=2)
            becomes.append(distance.argmin(1))
        return cls(found.international, found.rotations, found.translations, np.array(becomes))

    def vectors(
        self, values: Float[np.ndarray, "atoms 3"], cell: Float[np.ndarray, "3 3"]
    ) -> np.ndarray:
        """Return the symmetric part of vectors at the atoms, such as forces."""
        turned = np.zeros_like(values)
        for turn, becomes in zip(self._turns(cell), self.becomes, strict=True):
            turned[becomes] += values @ turn
        return turned / len(self.becomes)

    def tensor(self, value: Float[np.ndarray, "3 3"], cell: Float[np.ndarray, "3 3"]) -> np.ndarray:
        """Return the symmetric part of a tensor, such as a stress."""
        turns = self._turns(cell)
        return np.mean(turns.transpose(0, 2, 1) @ value @ turns, axis=0)

    def settled(self, structure: Structure) -> Structure:
        """Return the crystal with its atoms exactly where the operations put them."""
        places = structure.frac_coords
        moved = np.zeros_like(places)
        operations = zip(self.rotations, self.translations, self.becomes, strict=True)
        for rotation, translation, becomes in operations:
            away = places @ rotation.T + translation - places[becomes]
            moved[becomes] += away - away.round()
        return Structure(structure.lattice, structure.species, places + moved / len(self.becomes))

    def _turns(self, cell: np.ndarray) -> Float[np.ndarray, "operations 3 3"]:
        """Return what the operations do to Cartesian row vectors, r -> r M."""
        return np.linalg.inv(cell) @ self.rotations.transpose(0, 2, 1) @ cell
