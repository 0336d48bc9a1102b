"""A potential as a calculator of ASE."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from matattn.errors import StructureError
from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.intervals import widths
from matattn.workflows.potentials.predict import DTYPES, Potential


class PotentialCalculator(Calculator):
    """ASE's interface: energy, free_energy, energies (eV), forces (eV/Å), stress (eV/Å^3).

    Atoms are periodic in all directions or in none; the elements must be those of the training. A
    potential with intervals also puts into ``results``: ``energy_half_width`` (eV),
    ``forces_half_width`` [N] (eV/Å, of the length of the error) and ``novelty`` [N], above 1 for
    surroundings unlike those of the training structures.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(self, potential: Potential, dtype: str = "float64", **settings: Any) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: choose {', '.join(DTYPES)}")
        super().__init__(**settings)
        potential.network.to(DTYPES[dtype])
        self.potential = potential

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute all properties of ``atoms``; raises StructureError for what cannot be read."""
        super().calculate(atoms, properties, system_changes)
        atoms = cast(Atoms, self.atoms)  # a copy, as ASE keeps it
        periodic = bool(atoms.pbc.all())
        if atoms.pbc.any() and not periodic:
            raise StructureError(
                "atoms are periodic in some directions only: give a cell with vacuum, and "
                "atoms.pbc = True"
            )
        self.potential.check(atoms.numbers, "atoms")
        cell = np.array(atoms.cell) if periodic else np.zeros((3, 3))
        batch = self.potential.batch([{"z": atoms.numbers, "pos": atoms.positions, "cell": cell}])
        found = energy_forces_stress(self.potential.energy, batch)
        energy = float(found.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": found.forces.cpu().numpy().astype(np.float64),
        }
        if properties and "energies" in properties:
            with torch.no_grad():
                self.results["energies"] = self.potential.network.atom_energies(batch).cpu().numpy()
        if self.potential.uncertainty is not None:
            trust = widths(self.potential.network, self.potential.uncertainty, batch)
            self.results |= {
                "energy_half_width": float(trust.energy[0]) * len(atoms),
                "forces_half_width": trust.forces.numpy().astype(np.float64),
                "novelty": trust.novelty.numpy().astype(np.float64),
            }
        if periodic:
            stress = found.stress[0].cpu().numpy().astype(np.float64)
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
