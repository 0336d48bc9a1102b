"""What a potential says beyond its errors: crystal, elasticity, phonons, smoothness, cost."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Element, Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from matattn.errors import ConfigError, StructureError
from matattn.extras import import_extra
from matattn.potentials.dataset import Frame, PotentialDataset
from matattn.structures.dataset import formula_key
from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.dynamics import Dynamics, constant_energy, scan
from matattn.workflows.potentials.energy_model import EnergyModel, Exact
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.properties import (
    at_rest,
    elastic_constants,
    equation_of_state,
)
from matattn.workflows.potentials.property_files import eos_plot, phonon_plot
from matattn.workflows.potentials.strained import cubic, stiffness, strained_crystals

SYMMETRIC = 0.05  # Å: how far atoms at rest may be from a more symmetric crystal
TIMED_ATOMS, TIMES = 256, 3
STEPS = 500  # of dynamics


@dataclass
class Physics:
    """What the report shows: rows (quantity, potential, truth, unit), figures by name, remarks."""

    crystal: str = ""  # of which
    truth: str = ""  # whose values stand beside
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, quantity: str, unit: str, potential: float, truth: float | None = None) -> None:
        """Add a row; what is no number is None."""
        values = [None if v is None or not np.isfinite(v) else float(v) for v in (potential, truth)]
        self.rows.append(
            {"quantity": quantity, "potential": values[0], "truth": values[1], "unit": unit}
        )


def physics_of(potential: EnergyModel, single: EnergyModel, dataset: PotentialDataset) -> Physics:
    """Return the physics of a potential beside that of its labels, where these tell it.

    ``single`` is the same in float32, whose time is measured. What cannot be computed is a remark.
    """
    found = Physics()
    frame = most_stable(dataset)
    exact = Exact(dataset.labeller) if dataset.labeller else None
    found.truth = dataset.labeller.name if dataset.labeller else "labels"
    if frame.cell.any():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Set OLD_ERROR_HANDLING")  # of spglib
            try:
                _add_crystal(found, potential, exact, frame)
            except Exception as error:  # spglib's and phonopy's, of crystals that are none
                reason = " ".join(str(error).split())
                found.remarks.append(f"the crystal of {frame.id}: {type(error).__name__}: {reason}")
    if exact is None:
        _add_strained(found, potential, dataset)
    found.add("energy that forces do not explain, across the range", "eV", scan(potential, frame))
    try:
        dynamics = constant_energy(potential, frame, STEPS)
        found.add("drift of the energy in dynamics", "meV/atom/ps", dynamics.drift)
        found.add("its scatter", "meV/atom", dynamics.scatter)
        found.figures["dynamics.png"] = dynamics_plot(dynamics)
    except StructureError as error:
        found.remarks.append(f"dynamics: {error}")
    found.add("time for energy and forces, an atom", "µs", time_per_atom(single, dataset))
    return found


def most_stable(dataset: PotentialDataset) -> Frame:
    """Return the training structure of the most frequent formula with the lowest energy an atom.

    Of labels without energies, that with the smallest forces.
    """
    frames = [dataset.frames[row] for row in dataset.rows("train")]
    frames = [frame for frame in frames if not frame.is_lone_atom] or frames
    keys = Counter(formula_key(frame.z) for frame in frames)
    formula = keys.most_common(1)[0][0]
    alike = [frame for frame in frames if formula_key(frame.z) == formula]
    known = [frame for frame in alike if not np.isnan(frame.energy)]
    if known:
        return min(known, key=lambda frame: frame.energy / len(frame.z))
    return min(alike, key=lambda frame: float(np.nan_to_num(np.abs(frame.forces), nan=1e3).max()))


def _primitive(potential: EnergyModel, frame: Frame) -> Structure:
    """Return the crystal that a structure of atoms comes to rest in; raises StructureError."""
    species = [Element.from_Z(int(z)) for z in frame.z]
    start = Structure(Lattice(frame.cell), species, frame.pos, coords_are_cartesian=True)
    rest = at_rest(potential, start)
    if rest.problem:
        raise StructureError(rest.problem)
    crystal = SpacegroupAnalyzer(rest.structure, SYMMETRIC).get_primitive_standard_structure()
    rest = at_rest(potential, crystal)
    if rest.problem:
        raise StructureError(rest.problem)
    return rest.structure


def _add_crystal(
    found: Physics, potential: EnergyModel, exact: EnergyModel | None, frame: Frame
) -> None:
    crystal = _primitive(potential, frame)
    truth = at_rest(exact, crystal).structure if exact else None
    group = SpacegroupAnalyzer(crystal, SYMMETRIC).get_space_group_symbol()
    found.crystal = f"{crystal.composition.reduced_formula}, {group}"
    models = [(potential, crystal)] + ([(exact, truth)] if exact and truth else [])
    lengths = [_conventional(structure).lattice.abc for _, structure in models]
    for axis, name in enumerate("abc"):
        if axis == 0 or abs(lengths[0][axis] - lengths[0][axis - 1]) > 1e-3:
            found.add(f"lattice constant {name}", "Å", *(one[axis] for one in lengths))
    _add_elastic(found, models)
    try:
        module = import_extra("matattn.workflows.potentials.phonons")
    except ConfigError as error:
        found.remarks.append(f"no phonons: {error}")
        return
    modes = [module.phonons(model, structure) for model, structure in models]
    if len(crystal) > 1:
        found.add("highest phonon at Γ", "THz", *(float(one.at_gamma[-1]) for one in modes))
    found.add("highest phonon anywhere", "THz", *(one.highest for one in modes))
    found.add("lowest phonon anywhere", "THz", *(round(one.lowest, 3) + 0.0 for one in modes))
    found.figures["phonons.png"] = phonon_plot(modes[0])


def _conventional(structure: Structure) -> Structure:
    """Return the standard cell, with axes along those of the crystal."""
    return SpacegroupAnalyzer(structure, SYMMETRIC).get_conventional_standard_structure()


def _add_elastic(found: Physics, models: Sequence[tuple[EnergyModel, Structure]]) -> None:
    """Add the equation of state and the elastic constants of the crystal in its standard axes."""
    curves = [equation_of_state(*one) for one in models]
    found.add("bulk modulus, by E(V)", "GPa", *(one.bulk_modulus for one in curves))
    found.figures["eos.png"] = eos_plot(curves[0])
    constants = [elastic_constants(model, _conventional(crystal)) for model, crystal in models]
    for row, column in ((0, 0), (0, 1), (3, 3)):
        values = (float(one.relaxed[row, column]) for one in constants)
        found.add(f"C{row + 1}{column + 1}", "GPa", *values)
    if not constants[0].stable:
        found.remarks.append("the crystal is elastically unstable with this potential")


def _add_strained(found: Physics, potential: EnergyModel, dataset: PotentialDataset) -> None:
    """Add the elastic constants of strained crystals among the data, atoms clamped."""
    rows, strains = strained_crystals(dataset.frames)
    if not rows:
        return
    frames = [dataset.frames[row] for row in rows]
    labels = stiffness(strains, np.stack([frame.stress for frame in frames]))
    predicted = stiffness(strains, _stresses(potential, frames))
    if labels is None or predicted is None:
        return
    names = ("C11", "C12", "C44")
    for name, value, truth in zip(names, cubic(predicted), cubic(labels), strict=True):
        found.add(f"{name} of the strained crystals of the data", "GPa", value * GPA, truth * GPA)


def _stresses(potential: EnergyModel, frames: Sequence[Frame]) -> np.ndarray:
    stresses = []
    for frame in frames:
        batch = potential.batch([{"z": frame.z, "pos": frame.pos, "cell": frame.cell}])
        stresses.append(energy_forces_stress(potential.energy, batch).stress[0].cpu().numpy())
    return np.stack(stresses)


def time_per_atom(potential: EnergyModel, dataset: PotentialDataset) -> float:
    """Return the least of some times of energy and forces over training structures, µs an atom."""
    chosen: list[Frame] = []
    for row in dataset.rows("train"):
        if chosen and sum(len(frame.z) for frame in chosen) >= TIMED_ATOMS:
            break
        chosen.append(dataset.frames[row])
    batch = potential.batch([{"z": f.z, "pos": f.pos, "cell": f.cell} for f in chosen])
    times = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        energy_forces_stress(potential.energy, batch)
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / len(batch.z)


def dynamics_plot(found: Dynamics) -> Figure:
    """Draw the total energy over time."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.times, 1000 * found.energies, linewidth=0.8)
    title = f"drift {found.drift:.2g} meV/atom/ps"
    axes.set(xlabel="time / ps", ylabel="total energy / meV per atom", title=title)
    return figure
