"""What relaxation, dynamics and properties ask of an energy, and the model behind a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from matattn.potentials.dataset import Labeller
from matattn.structures.batch import CrystalBatch, collate
from matattn.structures.image_rule import ImageRule


class EnergyModel(Protocol):
    """An energy of structures that can be differentiated by their positions and cells."""

    def double(self) -> EnergyModel:
        """Return the same, computing in float64."""

    def check(self, numbers: Sequence[int] | np.ndarray, where: str) -> None:
        """Raise StructureError for an element that it does not know."""

    def batch(self, atoms: Sequence[Mapping[str, Any]]) -> CrystalBatch:
        """Return structures (z, pos Å, cell Å [3, 3]) with their neighbours."""

    def energy(self, batch: CrystalBatch) -> Tensor:
        """Return the energy of every structure of a batch [B], eV."""


def items_of(atoms: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """Return structures (z, pos, cell) as tensors that ``collate`` takes."""
    return [
        {
            "z": torch.tensor(np.asarray(one["z"], dtype=np.int64)),
            "pos": torch.tensor(np.asarray(one["pos"], dtype=np.float64)),
            "cell": torch.tensor(np.asarray(one["cell"], dtype=np.float64))[None],
        }
        for one in atoms
    ]


@dataclass(frozen=True)
class Exact:
    """The model that made the labels, as an EnergyModel."""

    labeller: Labeller

    def double(self) -> Exact:
        """Return itself: it computes in float64."""
        return self

    def check(self, numbers: Sequence[int] | np.ndarray, where: str) -> None:
        """Take every element."""

    def batch(self, atoms: Sequence[Mapping[str, Any]]) -> CrystalBatch:
        """Return structures (z, pos Å, cell Å [3, 3]) with their neighbours."""
        return collate(items_of(atoms), ImageRule(self.labeller.cutoff))

    def energy(self, batch: CrystalBatch) -> Tensor:
        """Return the energy of every structure of a batch [B], eV."""
        return self.labeller.energy(batch)
