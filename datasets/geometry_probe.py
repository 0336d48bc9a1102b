"""A hypothetical energy that depends on composition and geometry in a known proportion.

MatText's probe of what a model learns from a representation (Alampara et al., arXiv:2406.17295):
the crystals of ``prototypes``, each stretched or compressed to the volume per atom of another one,
drawn at random, and

    E = share z(E_composition) + (1 - share) z(E_geometry)

with z the standard score over the training crystals. ``E_composition`` is the mean over atoms of a
random number for each element. ``E_geometry`` is the mean over atoms of a Morse potential summed
over all neighbours within 6 Å, the same for all elements (bond 2.5 Å, 1 / Å wide). It depends on
distances alone, about which a composition tells only the structure types that it occurs in.
"""

from __future__ import annotations

import numpy as np

from matattn.datasets.prototypes import read_table
from matattn.errors import ConfigError
from matattn.structures.dataset import PropertyDataset
from matattn.structures.neighbors import SELF, periodic_neighbors
from matattn.structures.structure import to_data, to_tensors
from matattn.units import find_properties

BOND, WIDTH, CUTOFF = 2.5, 1.0, 6.0  # Å


def load(name: str, share: float, seed: int = 0) -> PropertyDataset:
    """Make the probe of 5,464 crystals, split by composition as ``prototypes`` are.

    ``share`` is that of the composition in the energy, 0 to 1. Raises ConfigError for other values.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"data.share={share!r}: expected a number from 0 to 1")
    rows, generator = read_table(), np.random.default_rng(seed)
    of_element = generator.standard_normal(119)
    structures = [row.structure for row in rows]
    volumes = generator.permutation([s.volume / len(s) for s in structures])  # Å^3 per atom
    for structure, volume in zip(structures, volumes, strict=True):
        structure.scale_lattice(len(structure) * volume)
    split = np.array([row.split for row in rows])
    energy = np.zeros(len(rows))
    parts = (
        (share, [of_element[list(s.atomic_numbers)].mean() for s in structures]),
        (1 - share, [morse(s.cart_coords, s.lattice.matrix) for s in structures]),
    )
    for weight, values in parts:
        part = np.array(values)
        train = part[split == "train"]
        energy += weight * (part - train.mean()) / train.std()
    items = [
        to_data(to_tensors(structure), (value,), row.id)
        for structure, value, row in zip(structures, energy, rows, strict=True)
    ]
    note = (
        f"the energy is made up: {share:.0%} composition, {1 - share:.0%} geometry, in standard "
        "deviations of the training crystals. It compares with nothing outside this probe."
    )
    return PropertyDataset(name, find_properties(["hypothetical_energy"]), items, split, note)


def morse(pos: np.ndarray, cell: np.ndarray) -> float:
    """Return the mean over atoms of the sum over neighbours of (1 - exp(-(d - b) / w))^2 - 1."""
    _, _, _, distance = periodic_neighbors(pos, cell, CUTOFF)
    distance = distance[distance > SELF]
    return float((((1 - np.exp((BOND - distance) / WIDTH)) ** 2) - 1).sum() / len(pos))
