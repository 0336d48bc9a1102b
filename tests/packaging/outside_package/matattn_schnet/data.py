"""Crystals whose energy is that of a pair potential."""

from __future__ import annotations

import numpy as np

from matattn.datasets.structures_io import check_rows, make_dataset
from matattn.structures.dataset import PropertyDataset
from matattn.structures.neighbors import periodic_neighbors

_PLACES = {"CsCl": [[0, 0, 0], [0.5, 0.5, 0.5]], "half-filled": [[0, 0, 0], [0.25, 0.25, 0.25]]}


def load(name: str, rows: int = 300, seed: int = 0, note: str = "") -> PropertyDataset:
    """Make ``rows`` crystals of two elements, with pair_energy (eV/atom) and is_dense (0 or 1).

    The energy is a Morse potential with a radius for each element, summed within 5 Å.
    """
    if rows < 20:
        raise ValueError(f"rows={rows}: expected at least 20")
    generator = np.random.default_rng(seed)
    entries = []
    for number in range(rows):
        kind = list(_PLACES)[number % 2]
        z, a = generator.integers(3, 13, 2), generator.uniform(3.8, 5.2)
        frac = np.array(_PLACES[kind])
        energy = _energy(z, frac * a, a * np.eye(3))
        row = {"id": f"{kind}-{number}", "Z": z.tolist(), "frac": frac.tolist()}
        row |= {"lattice": (a * np.eye(3)).tolist()}
        row |= {"pair_energy": energy, "is_dense": bool(a < 4.5)}
        entries.append((f"row {number + 1}", row))
    table = check_rows(name, (entries, []))
    units = {"pair_energy": "eV/atom", "is_dense": "probability"}
    return make_dataset(name, name, table, ["pair_energy"], "random", seed, units=units, note=note)


def _energy(z: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> float:
    """Return the energy per atom, eV."""
    target, source, _, distance = periodic_neighbors(pos, cell, 5.0)
    radius = 1.2 + 0.03 * z
    stretch = distance - radius[target] - radius[source]
    bond = (1 - np.exp(-stretch)) ** 2 - 1
    return float(0.05 * bond[distance > 0.1].sum() / len(z))
