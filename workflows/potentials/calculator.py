"""A potential as a calculator of ASE."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from matattn.workflows.potentials.predict import Potential, is_periodic


class PotentialCalculator(Calculator):
    """ASE's interface: energy, free_energy, energies (eV), forces (eV/Å), stress (eV/Å^3).

    Atoms are periodic in all directions or in none; the elements must be those of the training. A
    potential with intervals also puts into ``results``: ``energy_half_width`` (eV),
    ``forces_half_width`` [N] (eV/Å, of the length of the error) and ``novelty`` [N], above 1 for
    surroundings unlike those of the training structures.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(self, potential: Potential, dtype: str = "float64", **settings: Any) -> None:
        super().__init__(**settings)
        self.potential = potential.in_precision(dtype)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute all properties of ``atoms``; raises StructureError for what cannot be read."""
        super().calculate(atoms, properties, system_changes)
        atoms = cast(Atoms, self.atoms)  # a copy, as ASE keeps it
        periodic = is_periodic(atoms.pbc, "atoms", "atoms.pbc")
        self.potential.check(atoms.numbers, "atoms")
        cell = np.array(atoms.cell) if periodic else np.zeros((3, 3))
        batch = self.potential.batch([{"z": atoms.numbers, "pos": atoms.positions, "cell": cell}])
        found, trust = self.potential.compute(batch)
        energy = float(found.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": found.forces.cpu().numpy().astype(np.float64),
        }
        if properties and "energies" in properties:
            with torch.no_grad():
                self.results["energies"] = self.potential.network.atom_energies(batch).cpu().numpy()
        if trust is not None:
            self.results |= {
                "energy_half_width": float(trust.energy[0]) * len(atoms),
                "forces_half_width": trust.forces.numpy().astype(np.float64),
                "novelty": trust.novelty.numpy().astype(np.float64),
            }
        if periodic:
            stress = found.stress[0].cpu().numpy().astype(np.float64)
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
