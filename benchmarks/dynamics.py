"""Follow a crystal for 10 ps at constant energy, and say how much the energy drifts.

    python benchmarks/dynamics.py mlearn-si docs/examples/Si.cif

A cell of at least 64 atoms, relaxed first; velocity Verlet in float64, 1 fs a step, from velocities
of 600 K, without a thermostat.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from matattn.potentials.dataset import Frame
from matattn.structures.files import read
from matattn.workflows.potentials.dynamics import constant_energy
from matattn.workflows.potentials.predict import Potential
from matattn.workflows.potentials.properties import at_rest

STEPS, ATOMS = 10_000, 64  # fs; at least


def main() -> None:
    """Print the drift."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("crystal")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    potential = Potential.load(arguments.model)
    crystal = at_rest(potential, read(arguments.crystal)[0]).structure
    repeats = int(np.ceil((ATOMS / len(crystal)) ** (1 / 3)))
    crystal = crystal * (repeats, repeats, repeats)
    atoms, unknown = len(crystal), np.nan
    frame = Frame(
        id=arguments.crystal,
        z=np.array(crystal.atomic_numbers),
        pos=crystal.cart_coords.copy(),
        cell=crystal.lattice.matrix.copy(),
        energy=unknown,
        forces=np.full((atoms, 3), unknown),
        stress=np.full((3, 3), unknown),
    )
    start = time.perf_counter()
    found = constant_energy(potential, frame, STEPS)
    each = 1e6 * (time.perf_counter() - start) / STEPS / atoms
    print(
        f"{atoms} atoms, {STEPS} steps of 1 fs: drift {found.drift:.2g} meV/atom/ps, "
        f"scatter {found.scatter:.2g} meV/atom, {each:.0f} µs a step and atom"
    )


if __name__ == "__main__":
    main()
