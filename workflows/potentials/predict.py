"""Energies, forces and stresses with a saved potential. Imports no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pymatgen.core import Element, Molecule, Structure
from torch import Tensor

from matattn import bundle, pretrained
from matattn.errors import BundleError, StructureError
from matattn.extras import import_extra
from matattn.models.crystalformer_potential import CrystalformerPotential, of_structures
from matattn.runtime import find_device
from matattn.structures.batch import CrystalBatch, by_atom_budget, collate
from matattn.structures.derivatives import EnergyDerivatives, energy_forces_stress
from matattn.structures.inputs import take
from matattn.structures.structure import validate
from matattn.uncertainty import Uncertainty
from matattn.workflows.potentials.energy_model import items_of
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.intervals import Trust, Widths, trust_of, widths

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from matattn.workflows.potentials.torch_sim_model import TorchSimModel

CPU = torch.device("cpu")
DTYPES = {"float64": torch.float64, "float32": torch.float32}  # of calculations
ATOMS_PER_BATCH = 500
COLUMNS = (
    "formula", "natoms", "energy", "energy_per_atom", "energy_per_atom_lower",
    "energy_per_atom_upper", "energy_unit", "max_force", "force_half_width", "force_unit",
    "pressure", "pressure_unit", "ood_score", "ood_flag", "status", "message",
)  # fmt: skip


def _or_shipped() -> str:
    return "".join(f", or {name}" for name in pretrained.names("potentials"))


def is_periodic(pbc: Any, what: str, setting: str) -> bool:
    """Return whether all directions are periodic, or none; raises StructureError for some."""
    found = np.asarray(pbc)
    if found.any() and not found.all():
        raise StructureError(
            f"{what} are periodic in some directions only: give a cell with vacuum, and "
            f"{setting} = True"
        )
    return bool(found.all())


@dataclass(frozen=True)
class Potential:
    """A trained potential: ``matattn.load(folder)`` returns it."""

    network: CrystalformerPotential
    config: dict[str, Any]
    device: torch.device = CPU
    uncertainty: Uncertainty | None = None

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu") -> Potential:
        """Load a potential by name or folder; raises BundleError or ConfigError."""
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "potentials":
            raise BundleError(
                f"{folder}: this model reads {kind}; a potential is the model/ folder of a run of "
                f"model=potential{_or_shipped()}"
            )
        networks, config, uncertainty = bundle.load(folder)
        elements = config["elements"]
        if not isinstance(elements, list) or not all(z in range(1, 119) for z in elements):
            raise BundleError(f"{folder}/config.json: elements: expected a list of atomic numbers")
        where = find_device(device)
        network = cast(CrystalformerPotential, networks[0]).to(where)
        return cls(network, config, where, uncertainty)

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision in which it computes."""
        return next(self.network.parameters()).dtype

    def double(self) -> Potential:
        """Return the same potential, computing in float64."""
        return self.in_precision("float64")

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
        made = collate(items_of(atoms), self.network.image_rule())
        return made.to(self.device, self.dtype)

    def predict(
        self,
        structures: Any,
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda structures: None,
    ) -> list[dict[str, Any]]:
        """Return a row per structure: energy, largest force, pressure, 90 % intervals, status.

        ``force_half_width`` is the largest of all atoms: so long may the error of a force be.

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
            batch = self.batch_of([structure for _, structure in chosen])
            found, trusted = self.compute(batch)
            sizes = [len(structure) for _, structure in chosen]
            largest = found.forces.norm(dim=1).split(sizes)
            for number, (index, structure) in enumerate(chosen):
                energy = float(found.energy[number])
                rows[index] |= {
                    "energy": energy, "energy_per_atom": energy / len(structure),
                    "energy_unit": "eV", "max_force": float(largest[number].max()),
                    "force_unit": "eV/Å",
                    "pressure": -float(found.stress[number].trace()) / 3 * GPA,
                    "pressure_unit": "GPa",
                }  # fmt: skip
            if trusted is not None:
                for (index, _), trust in zip(chosen, trust_of(trusted, batch), strict=True):
                    rows[index] |= trust.columns(rows[index])
            advance(len(chosen))
        return rows

    def trust(self, batch: CrystalBatch) -> list[Trust]:
        """Return how far to trust the values of every structure; nothing without intervals."""
        if self.uncertainty is None:
            return [Trust()] * batch.num_graphs
        with torch.no_grad():
            features = self.network.atom_features(batch)
        return trust_of(widths(self.network, self.uncertainty, features, batch), batch)

    def compute(self, batch: CrystalBatch) -> tuple[EnergyDerivatives, Widths | None]:
        """Return energies, forces and stresses, and how far to trust them, in one pass.

        The second is None without intervals.
        """
        seen: list[Tensor] = []

        def energy(strained: CrystalBatch) -> Tensor:
            features, energies = self.network.atoms(strained)
            seen.append(features.detach())
            return of_structures(energies, strained)

        found = energy_forces_stress(energy, batch)
        if self.uncertainty is None:
            return found, None
        return found, widths(self.network, self.uncertainty, seen[0], batch)

    def in_precision(self, dtype: str) -> Potential:
        """Return the same potential, computing in float64 or float32; ValueError for others.

        It is a copy where the precision changes. The constants of the elements stay in float64.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: choose {', '.join(DTYPES)}")
        if DTYPES[dtype] == self.dtype:
            return self
        network = deepcopy(self.network).to(DTYPES[dtype])
        network.constants, network.binding = self.network.constants, self.network.binding
        return replace(self, network=network)

    def evaluate(self, structures: Sequence[Structure | Molecule]) -> EnergyDerivatives:
        """Return energies (eV), forces (eV/Å) and stresses (eV/Å^3; NaN of molecules).

        Raises StructureError for elements that the training did not have.
        """
        for number, structure in enumerate(structures):
            self.check(structure.atomic_numbers, f"structure {number + 1}")
        return energy_forces_stress(self.energy, self.batch_of(structures))

    def batch_of(self, structures: Sequence[Structure | Molecule]) -> CrystalBatch:
        """Return structures of pymatgen with their neighbours, for the network."""
        return self.batch([
            {"z": s.atomic_numbers, "pos": s.cart_coords,
             "cell": s.lattice.matrix if isinstance(s, Structure) else np.zeros((3, 3))}
            for s in structures
        ])  # fmt: skip

    def energy(self, batch: CrystalBatch) -> Tensor:
        """Return the energy of every structure of a batch [B], eV."""
        return self.network(batch)

    def torch_sim(self, dtype: str = "float64") -> TorchSimModel:
        """Return a model of TorchSim (``matattn[potential]``), for many systems in one batch.

        Raises ConfigError when TorchSim is missing.
        """
        module = import_extra("matattn.workflows.potentials.torch_sim_model")
        return module.TorchSimModel(self, dtype)

    def calculator(self, dtype: str = "float64") -> Calculator:
        """Return a calculator of ASE (``matattn[data]``): energies, forces, stress.

        ``dtype`` is float64 or float32, which is faster. Raises ConfigError when ASE is missing.
        """
        return import_extra("matattn.workflows.potentials.calculator").PotentialCalculator(
            self, dtype
        )
