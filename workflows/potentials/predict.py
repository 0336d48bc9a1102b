"""Energies, forces and stresses with a saved potential. Imports no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pymatgen.core import Element, Molecule, Structure
from torch import Tensor

from matattn import bundle, pretrained
from matattn.errors import BundleError, StructureError
from matattn.extras import import_extra
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.runtime import find_device
from matattn.structures.batch import CrystalBatch, by_atom_budget, collate
from matattn.structures.derivatives import EnergyDerivatives, energy_forces_stress
from matattn.structures.inputs import take
from matattn.structures.structure import validate
from matattn.workflows.potentials.errors import GPA

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

CPU = torch.device("cpu")
ATOMS_PER_BATCH = 500
COLUMNS = (
    "formula", "natoms", "energy", "energy_per_atom", "energy_unit", "max_force", "max_force_unit",
    "pressure", "pressure_unit", "status", "message",
)  # fmt: skip


@dataclass(frozen=True)
class Potential:
    """A trained potential: ``matattn.load(folder)`` returns it."""

    network: CrystalformerPotential
    config: dict[str, Any]
    device: torch.device = CPU

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu") -> Potential:
        """Load a potential by name or folder; raises BundleError or ConfigError."""
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "potentials":
            raise BundleError(
                f"{folder}: this model reads {kind}; a potential is the model/ folder of a run of "
                "model=potential"
            )
        networks, config, _ = bundle.load(folder)
        elements = config["elements"]
        if not isinstance(elements, list) or not all(z in range(1, 119) for z in elements):
            raise BundleError(f"{folder}/config.json: elements: expected a list of atomic numbers")
        where = find_device(device)
        return cls(cast(CrystalformerPotential, networks[0]).to(where), config, where)

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision in which it computes."""
        return next(self.network.parameters()).dtype

    def double(self) -> Potential:
        """Return the same potential, computing in float64."""
        self.network.double()
        return self

    def check(self, numbers: Sequence[int] | np.ndarray, where: str) -> None:
        """Raise StructureError for an element that the potential was not trained for."""
        unknown = sorted(set(map(int, numbers)) - set(self.config["elements"]))
        if unknown:
            known = ", ".join(Element.from_Z(z).symbol for z in self.config["elements"])
            raise StructureError(
                f"{where}: {Element.from_Z(unknown[0]).symbol} is not among the elements of this "
                f"potential: {known}"
            )

    def batch(self, atoms: Sequence[Mapping[str, Any]]) -> CrystalBatch:
        """Return structures (z, pos Å, cell Å [3, 3]) with their neighbours, for the network."""
        items = [
            {
                "z": torch.tensor(np.asarray(one["z"], dtype=np.int64)),
                "pos": torch.tensor(np.asarray(one["pos"], dtype=np.float64)),
                "cell": torch.tensor(np.asarray(one["cell"], dtype=np.float64))[None],
            }
            for one in atoms
        ]
        return collate(items, self.network.image_rule()).to(self.device, self.dtype)

    def predict(
        self,
        structures: Any,
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda structures: None,
    ) -> list[dict[str, Any]]:
        """Return a row per structure: energy, largest force, pressure, status and message.

        ``structures`` are whatever ``matattn.structures.inputs.take`` takes: objects of pymatgen or
        ASE, files, dictionaries, or a collection of them. What cannot be used has a row with the
        name of its error, and stops no other. Units: eV, eV/Å, GPa.
        """
        rows: list[dict[str, Any]] = []
        usable: list[tuple[int, Structure | Molecule]] = []
        for where, structure in take(structures, places):
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            try:
                if isinstance(structure, StructureError):
                    raise structure
                doubts = validate(structure, where)
                row |= {"formula": structure.composition.reduced_formula, "natoms": len(structure)}
                self.check(structure.atomic_numbers, where)
                usable.append((len(rows), structure))
                row |= {"status": "ok", "message": "; ".join(doubts)}
            except StructureError as error:
                row |= {"status": type(error).__name__, "message": str(error)}
                advance(1)
            rows.append(row)
        for group in by_atom_budget([len(one) for _, one in usable], ATOMS_PER_BATCH):
            chosen = [usable[number] for number in group]
            found = self.evaluate([structure for _, structure in chosen])
            largest = found.forces.norm(dim=1).split([len(one) for _, one in chosen])
            for number, (index, structure) in enumerate(chosen):
                energy = float(found.energy[number])
                rows[index] |= {
                    "energy": energy, "energy_per_atom": energy / len(structure),
                    "energy_unit": "eV", "max_force": float(largest[number].max()),
                    "max_force_unit": "eV/Å",
                    "pressure": -float(found.stress[number].trace()) / 3 * GPA,
                    "pressure_unit": "GPa",
                }  # fmt: skip
            advance(len(chosen))
        return rows

    def evaluate(self, structures: Sequence[Structure | Molecule]) -> EnergyDerivatives:
        """Return energies (eV), forces (eV/Å) and stresses (eV/Å^3; NaN of molecules).

        Raises StructureError for elements that the training did not have.
        """
        for number, structure in enumerate(structures):
            self.check(structure.atomic_numbers, f"structure {number + 1}")
        batch = self.batch([
            {"z": s.atomic_numbers, "pos": s.cart_coords,
             "cell": s.lattice.matrix if isinstance(s, Structure) else np.zeros((3, 3))}
            for s in structures
        ])  # fmt: skip
        return energy_forces_stress(self.energy, batch)

    def energy(self, batch: CrystalBatch) -> Tensor:
        """Return the energy of every structure of a batch [B], eV."""
        return self.network(batch)

    def calculator(self, dtype: str = "float64") -> Calculator:
        """Return a calculator of ASE (``matattn[data]``): energies, forces, stress.

        ``dtype`` is float64 or float32, which is faster. Raises ConfigError when ASE is missing.
        """
        return import_extra("matattn.workflows.potentials.calculator").PotentialCalculator(
            self, dtype
        )
