"""Whether energies and forces belong together: along a path, and in dynamics of constant energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from matattn.errors import StructureError
from matattn.potentials.dataset import Frame
from matattn.potentials.sampling import BOLTZMANN, UNIT_OF_TIME, masses
from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.energy_model import EnergyModel

TIME_STEP, TEMPERATURE = 1.0, 600.0  # fs; K at the start, of which half is left
SETTLING = 0.2  # of the steps, before the drift is measured
POINTS, STEP = 300, 1e-3  # of the scan: Å
ATOMS_PER_BATCH = 1024


@dataclass(frozen=True)
class Dynamics:
    """The total energy along a trajectory, and what a straight line through it says."""

    times: np.ndarray  # ps
    energies: np.ndarray  # eV per atom, from the first one
    drift: float  # meV/atom/ps
    scatter: float  # meV/atom, root mean square about the line


def scan(model: EnergyModel, frame: Frame) -> float:
    """Return how much energy its force does not explain, eV, when an atom moves by 0.3 Å.

    The largest difference of a step of 0.001 Å and the mean of the forces at its ends; for a smooth
    energy it is of the order of 1e-9. Neighbours cross the range on the way.
    """
    model = model.double()
    path = np.repeat(frame.pos[None], POINTS + 1, axis=0)
    along = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    path[:, 0] += STEP * np.arange(POINTS + 1)[:, None] * along
    energies, forces = [], []
    each = max(1, ATOMS_PER_BATCH // len(frame.z))
    for begin in range(0, len(path), each):
        part = path[begin : begin + each]
        batch = model.batch([{"z": frame.z, "pos": pos, "cell": frame.cell} for pos in part])
        found = energy_forces_stress(model.energy, batch)
        energies.append(found.energy.cpu().numpy())
        forces.append(found.forces.view(len(part), -1, 3)[:, 0].cpu().numpy() @ along)
    energy, force = np.concatenate(energies), np.concatenate(forces)
    return float(np.abs(np.diff(energy) + STEP * (force[1:] + force[:-1]) / 2).max())


def constant_energy(model: EnergyModel, frame: Frame, steps: int, seed: int = 0) -> Dynamics:
    """Follow a structure with velocity Verlet, 1 fs a step, from velocities of 600 K.

    Raises StructureError where forces become no numbers.
    """
    model, generator = model.double(), np.random.default_rng(seed)
    mass = masses(frame.z)
    velocity = generator.normal(size=frame.pos.shape) * np.sqrt(BOLTZMANN * TEMPERATURE / mass)
    velocity -= (mass * velocity).sum(0) / mass.sum()
    pos, step = frame.pos.copy(), TIME_STEP / UNIT_OF_TIME
    force, totals = np.zeros_like(pos), np.empty(steps + 1)
    for number in range(steps + 1):
        batch = model.batch([{"z": frame.z, "pos": pos, "cell": frame.cell}])
        found = energy_forces_stress(model.energy, batch)
        force = found.forces.cpu().numpy().astype(np.float64)
        if not np.isfinite(force).all():
            raise StructureError(f"after {number} fs the forces are no numbers")
        if number:
            velocity += step / 2 * force / mass
        totals[number] = float(found.energy[0]) + 0.5 * (mass * velocity**2).sum()
        velocity += step / 2 * force / mass
        pos = pos + step * velocity
    times, energies = TIME_STEP * np.arange(steps + 1) / 1000, (totals - totals[0]) / len(frame.z)
    settled = slice(int(SETTLING * steps), None)
    line = np.polynomial.Polynomial.fit(times[settled], 1000 * energies[settled], 1)
    rest = 1000 * energies[settled] - line(times[settled])
    slope = float(line.convert().coef[1])
    return Dynamics(times, energies, slope, float(np.sqrt(np.mean(rest**2))))
