r"""Relax many crystals at once: positions and cells to the nearest minimum of the enthalpy.

FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006) over positions x and a deformation F with
:math:`r = x F` and cell :math:`L = L_0 F`. With the virial :math:`W = V (\sigma + P)` the forces
are :math:`f_x = f_r F^T` and :math:`f_F = -F^{-T} W`; F counts N times, as in ASE's
``UnitCellFilter``. Every crystal has its own step and velocity, and all share the network's batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure

from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.energy_model import EnergyModel
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.fixed_symmetry import SpaceGroup

ATOMS_PER_BATCH = 256
LARGEST_MOVE = 0.2  # Å in a step
FIRST_STEP, LONGEST_STEP, MIXED = 0.1, 1.0, 0.1
PATIENCE, LONGER, SHORTER, LESS_MIXED = 5, 1.1, 0.5, 0.99
SYMMETRIC = 1e-2  # Å; what counts as symmetric in the beginning
LEAST_VOLUME, MOST_VOLUME = 0.4, 2.5  # of the first one: beyond it, the potential is lost


@dataclass(frozen=True)
class Settings:
    """When a crystal is relaxed, and what may move."""

    max_force: float = 0.01  # eV/Å
    max_stress: float = 0.1  # GPa, beside the pressure
    pressure: float = 0.0  # GPa
    fixed_cell: bool = False
    fixed_symmetry: bool = False  # that of the first crystal stays, whatever the potential prefers
    max_steps: int = 500


@dataclass
class Relaxed:
    """What became of a crystal. Energies in eV, force in eV/Å, stress in GPa without pressure."""

    number: int  # of the crystal, in the order given
    structure: Structure
    energy_before: float
    energy_after: float
    max_force: float
    max_stress: float
    volume_before: float  # Å^3
    steps: int
    problem: str = ""  # why it is no minimum
    path: list[Structure] = field(default_factory=list)  # if asked for


def relax(
    potential: EnergyModel,
    structures: Iterable[Structure],
    settings: Settings | None = None,
    keep_path: bool = False,
    advance: Callable[[int], Any] = lambda crystals: None,
) -> Iterator[Relaxed]:
    """Yield every crystal when it is relaxed, or given up; those that need few steps come first.

    Structures are taken from an iterator when there is room for them. Raises StructureError for
    elements that the potential was not trained for.
    """
    settings = settings or Settings()
    potential = potential.double()
    incoming = enumerate(structures)
    following = next(incoming, None)
    moving: list[_Moving] = []
    while following or moving:
        atoms = sum(len(one.pos) for one in moving)
        while following and (not moving or atoms + len(following[1]) <= ATOMS_PER_BATCH):
            number, structure = following
            potential.check(structure.atomic_numbers, f"structure {number + 1}")
            moving.append(_Moving.start(number, structure, settings))
            atoms += len(structure)
            following = next(incoming, None)
        batch = potential.batch(
            [{"z": one.numbers, "pos": one.pos @ one.deformation, "cell": one.cell}
             for one in moving]
        )  # fmt: skip
        found = energy_forces_stress(potential.energy, batch)
        forces = found.forces.cpu().split([len(one.pos) for one in moving])
        kept = []
        for place, one in enumerate(moving):
            stress = found.stress[place].cpu().numpy()
            done = one.step(float(found.energy[place]), forces[place].numpy(), stress, settings)
            if keep_path:
                one.path.append(one.structure())
            if done is None:
                kept.append(one)
            else:
                advance(1)
                yield done
        moving = kept


@dataclass
class _Moving:
    """A crystal on its way."""

    number: int
    first: Structure
    numbers: tuple[int, ...]
    pos: np.ndarray  # x
    deformation: np.ndarray  # F
    velocity: np.ndarray  # of x and N F, one behind the other
    time_step: float = FIRST_STEP
    mixed: float = MIXED
    downhill: int = 0  # steps since the energy rose
    steps: int = 0
    energy_before: float | None = None
    path: list[Structure] = field(default_factory=list)
    space_group: SpaceGroup | None = None  # if it is kept

    @classmethod
    def start(cls, number: int, structure: Structure, settings: Settings) -> _Moving:
        space_group = None
        if settings.fixed_symmetry:
            space_group = SpaceGroup.of(structure, SYMMETRIC)
            structure = space_group.settled(structure)
        pos = np.array(structure.cart_coords)
        velocity = np.zeros((len(pos) + 3, 3))
        return cls(
            number, structure, structure.atomic_numbers, pos, np.eye(3), velocity,
            space_group=space_group,
        )  # fmt: skip

    @property
    def cell(self) -> np.ndarray:
        """Return the lattice vectors, Å."""
        return self.first.lattice.matrix @ self.deformation

    def structure(self) -> Structure:
        """Return the crystal as it is now."""
        return Structure(
            Lattice(self.cell), self.first.species, self.pos @ self.deformation,
            coords_are_cartesian=True,
        )  # fmt: skip

    def step(
        self, energy: float, forces: np.ndarray, stress: np.ndarray, settings: Settings
    ) -> Relaxed | None:
        """Move, or return the result when there is nothing to move any more."""
        if self.energy_before is None:
            self.energy_before = energy
        if self.space_group:
            forces = self.space_group.vectors(forces, self.cell)
            stress = self.space_group.tensor(stress, self.cell)
        volume = abs(np.linalg.det(self.cell))
        beside = stress + settings.pressure / GPA * np.eye(3)
        force = float(np.linalg.norm(forces, axis=1).max())
        largest = 0.0 if settings.fixed_cell else float(np.abs(beside).max()) * GPA
        share, problem = volume / self.first.volume, ""
        at_rest = force < settings.max_force and largest < settings.max_stress
        if not np.isfinite([energy, force, share]).all():
            problem = "the potential gives no number here"
        elif not LEAST_VOLUME < share < MOST_VOLUME:
            problem = f"its volume became {share:.2g} times the first: the potential is lost here"
        elif self.steps == settings.max_steps and not at_rest:
            problem = f"not at rest after {self.steps} steps"
        if problem or at_rest:
            return Relaxed(
                number=self.number, structure=self.structure(), energy_before=self.energy_before,
                energy_after=energy, max_force=force, max_stress=largest,
                volume_before=self.first.volume, steps=self.steps, problem=problem, path=self.path,
            )  # fmt: skip
        pull = np.zeros_like(self.velocity)
        pull[:-3] = forces @ self.deformation.T
        if not settings.fixed_cell:
            pull[-3:] = -np.linalg.solve(self.deformation.T, volume * beside) / len(self.pos)
        self._move(pull)
        return None

    def _move(self, pull: np.ndarray) -> None:
        """Take a step of FIRE."""
        if (power := float((pull * self.velocity).sum())) > 0:
            along = np.linalg.norm(self.velocity) / np.linalg.norm(pull)
            self.velocity = (1 - self.mixed) * self.velocity + self.mixed * along * pull
            self.downhill += 1
            if self.downhill > PATIENCE:
                self.time_step = min(LONGER * self.time_step, LONGEST_STEP)
                self.mixed *= LESS_MIXED
        else:
            if power < 0:
                self.time_step *= SHORTER
            self.velocity, self.mixed, self.downhill = np.zeros_like(pull), MIXED, 0
        self.velocity = self.velocity + self.time_step * pull
        move = self.time_step * self.velocity
        longest = np.linalg.norm(move, axis=1).max()
        move *= min(1.0, LARGEST_MOVE / longest) if longest else 1.0
        self.pos = self.pos + move[:-3]
        self.deformation = self.deformation + move[-3:] / len(self.pos)
        self.steps += 1
