"""Elemental reference crystals of the data set ``prototypes`` that its structure types lack.

Formation energies are relative to CHGNet's energies of the elements, so these crystals are relaxed
with CHGNet, too. Molecular elements need dense molecular crystals: in sparse boxes, far from its
training data, CHGNet's energies of F2 are 0.1 to 0.2 eV/atom too low.

Starting structures are the experimental ones (see J. Donohue, The Structures of the Elements,
1974), rounded.
"""

from __future__ import annotations

from typing import Any

from pymatgen.core import Lattice, Structure

# Space group, cell (a, b, c in Å, alpha, beta, gamma in degrees), sites (fractional coordinates).
_CRYSTALS: dict[str, tuple[str, str, tuple[float, ...], list[tuple[float, float, float]]]] = {
    "O2 alpha": ("O", "C2/m", (5.403, 3.429, 5.086, 90, 132.53, 90), [(0.1025, 0, 0.161)]),
    "N2 alpha": ("N", "Pa-3", (5.66, 5.66, 5.66, 90, 90, 90), [(0.0556,) * 3]),
    # In place of alpha-F2: N2's structure, for which CHGNet gives the -1.90 eV/atom of alpha-F2.
    "F2 ordered": ("F", "Pa-3", (5.04, 5.04, 5.04, 90, 90, 90), [(0.0813,) * 3]),
    "Cl2": ("Cl", "Cmce", (6.145, 4.395, 8.154, 90, 90, 90), [(0, 0.1173, 0.1016)]),
    "Br2": ("Br", "Cmce", (6.737, 4.548, 8.761, 90, 90, 90), [(0, 0.135, 0.110)]),
    "I2": ("I", "Cmce", (7.137, 4.786, 9.791, 90, 90, 90), [(0, 0.1543, 0.1174)]),
    "S8 alpha": (
        "S",
        "Fddd",
        (10.4646, 12.8660, 24.4860, 90, 90, 90),
        [  # published from the inversion centre; pymatgen's Fddd has its origin at 222, 1/8 away
            (0.8554 + 1 / 8, 0.9526 + 1 / 8, 0.9516 + 1 / 8),
            (0.7844 + 1 / 8, 0.0301 + 1 / 8, 0.0763 + 1 / 8),
            (0.7069 + 1 / 8, 0.9795 + 1 / 8, 0.0040 + 1 / 8),
            (0.7862 + 1 / 8, 0.9073 + 1 / 8, 0.1290 + 1 / 8),
        ],
    ),
    "Se grey": ("Se", "P3_121", (4.366, 4.366, 4.954, 90, 90, 120), [(0.225, 0, 1 / 3)]),
    "Te": ("Te", "P3_121", (4.457, 4.457, 5.929, 90, 90, 120), [(0.2636, 0, 1 / 3)]),
    "P black": ("P", "Cmce", (3.3136, 10.478, 4.3763, 90, 90, 90), [(0, 0.1017, 0.0806)]),
    "B12 alpha": (
        "B",
        "R-3m",
        (4.927, 4.927, 12.567, 90, 90, 120),
        [(0.1189, 0.2378, 0.8913), (0.1961, 0.3922, 0.0245)],
    ),
    "C graphite": (
        "C",
        "P6_3/mmc",
        (2.461, 2.461, 6.708, 90, 90, 120),
        [(0, 0, 1 / 4), (1 / 3, 2 / 3, 1 / 4)],
    ),
    "Ga alpha": ("Ga", "Cmce", (4.519, 7.659, 4.526, 90, 90, 90), [(0, 0.1549, 0.0810)]),
    "Mn alpha": (
        "Mn",
        "I-43m",
        (8.913, 8.913, 8.913, 90, 90, 90),
        [(0, 0, 0), (0.317, 0.317, 0.317), (0.357, 0.357, 0.034), (0.089, 0.089, 0.282)],
    ),
    "In": ("In", "I4/mmm", (3.253, 3.253, 4.947, 90, 90, 90), [(0, 0, 0)]),
    "Hg alpha": ("Hg", "R-3m", (3.458, 3.458, 6.684, 90, 90, 120), [(0, 0, 0)]),
    "La alpha": (
        "La",
        "P6_3/mmc",
        (3.774, 3.774, 12.171, 90, 90, 120),
        [(0, 0, 0), (1 / 3, 2 / 3, 1 / 4)],
    ),
    "Nd alpha": (
        "Nd",
        "P6_3/mmc",
        (3.658, 3.658, 11.797, 90, 90, 120),
        [(0, 0, 0), (1 / 3, 2 / 3, 1 / 4)],
    ),
}


def reference_crystals() -> dict[str, Structure]:
    """Return unrelaxed reference crystals by name, as primitive cells."""
    crystals = {}
    for name, (element, group, cell, sites) in _CRYSTALS.items():
        lattice = Lattice.from_parameters(*cell)
        crystal = Structure.from_spacegroup(group, lattice, [element] * len(sites), sites)
        crystals[name] = crystal.get_primitive_structure()
    return crystals


def relaxed_reference_energies() -> dict[str, dict[str, float]]:
    """Relax every reference crystal (cell and positions) with CHGNet.

    Returns:
        ``{element: {crystal name: energy in eV/atom}}``.
    """
    from chgnet.model import StructOptimizer

    optimizer = StructOptimizer(use_device="cpu")
    energies: dict[str, dict[str, float]] = {}
    for name, crystal in reference_crystals().items():
        result = optimizer.relax(crystal, fmax=0.01, steps=500, verbose=False)
        trajectory: Any = result["trajectory"]
        energy = float(trajectory.energies[-1]) / len(crystal)
        energies.setdefault(crystal[0].specie.symbol, {})[name] = energy
    return energies
