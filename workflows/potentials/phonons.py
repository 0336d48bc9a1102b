"""Phonons of a crystal, by phonopy (Togo et al., J. Phys. Condens. Matter 35, 353001, 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.bandstructure import HighSymmKpath

from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.energy_model import EnergyModel

DISPLACED = 0.01  # Å
LONG_ENOUGH = 10.0  # Å: cells are at least as long
IMAGINARY = -0.05  # THz: frequencies below are no rounding


@dataclass(frozen=True)
class Phonons:
    """Frequencies in THz; imaginary ones are negative."""

    at_gamma: np.ndarray  # of the primitive cell, ascending
    lowest: float  # on the mesh
    highest: float
    density: tuple[np.ndarray, np.ndarray]  # frequency, states per THz and primitive cell
    bands: Sequence[tuple[str, str, np.ndarray]]  # label, label, frequencies [points, modes];
    # none where the primitive cell is not found among the standard ones

    @property
    def stable(self) -> bool:
        """Return whether no mode is imaginary."""
        return self.lowest > IMAGINARY


def phonons(potential: EnergyModel, structure: Structure) -> Phonons:
    """Return the phonons of a crystal at rest, by phonopy, from forces of displaced atoms.

    Charges and the splitting at Gamma that they cause are not included.
    """
    potential = potential.double()
    cell = PhonopyAtoms(
        numbers=structure.atomic_numbers, cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
    )  # fmt: skip
    repeats = [max(1, int(np.ceil(LONG_ENOUGH / length))) for length in structure.lattice.abc]
    with warnings.catch_warnings():  # it says which primitive cell it found
        warnings.simplefilter("ignore")
        crystal = Phonopy(cell, np.diag(repeats), primitive_matrix="auto", log_level=0)
    crystal.generate_displacements(distance=DISPLACED)
    moved = [
        {"z": one.numbers, "pos": one.positions, "cell": one.cell}
        for one in crystal.supercells_with_displacements or ()
    ]
    crystal.forces = [
        energy_forces_stress(potential.energy, potential.batch([one])).forces.cpu().numpy()
        for one in moved
    ]
    crystal.produce_force_constants()
    crystal.symmetrize_force_constants()
    with warnings.catch_warnings():  # another mesh, where cell and symmetry ask for it
        warnings.simplefilter("ignore")
        crystal.run_mesh(40.0)
    crystal.run_total_dos()
    mesh, density = cast(Any, crystal.mesh), cast(Any, crystal.total_dos)  # not None any more
    return Phonons(
        at_gamma=np.sort(_frequencies(crystal, [[0, 0, 0]])[0]),
        lowest=float(mesh.frequencies.min()),
        highest=float(mesh.frequencies.max()),
        density=(density.frequency_points, density.dos),
        bands=_bands(crystal),
    )


def _bands(crystal: Phonopy) -> list[tuple[str, str, np.ndarray]]:
    """Return the frequencies along the lines of Setyawan and Curtarolo (2010)."""
    primitive = crystal.primitive
    structure = Structure(Lattice(primitive.cell), primitive.symbols, primitive.scaled_positions)
    with warnings.catch_warnings():  # of other cells than the standard one: see below
        warnings.simplefilter("ignore")
        lines = HighSymmKpath(structure)
    path = lines.kpath or {"path": [], "kpoints": {}}
    # The points are those of a standard cell, which is turned and has other vectors.
    mapping = structure.lattice.find_mapping(lines.prim.lattice, ltol=1e-3, atol=0.1)
    if mapping is None:
        return []
    to_own = np.linalg.inv(mapping[2])
    bands = []
    for line in path["path"]:
        for one, other in zip(line[:-1], line[1:], strict=True):
            begin, end = (to_own @ path["kpoints"][label] for label in (one, other))
            points = np.linspace(begin, end, 41)
            bands.append((one, other, np.sort(_frequencies(crystal, points), axis=1)))
    return bands


def _frequencies(crystal: Phonopy, points: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Return frequencies [points, modes] at wave vectors in units of the reciprocal cell, THz."""
    return np.asarray(crystal.run_qpoints(points).frequencies)
