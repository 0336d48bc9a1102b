"""Structures with the energies, forces and stresses of a model, made at run time and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pymatgen.core import Element

from matattn.cache import Arrays, cached
from matattn.errors import DataError
from matattn.potentials.dataset import Frame, Labeller, PotentialDataset
from matattn.structures.batch import CrystalBatch, collate
from matattn.structures.dataset import SPLITS
from matattn.structures.derivatives import energy_forces_stress
from matattn.structures.image_rule import ImageRule

BOLTZMANN = 8.617333e-5  # eV/K
UNIT_OF_TIME = 10.1805  # fs, where Å, eV and u are units
STEP, BETWEEN = 2.0, 25  # fs; steps from one frame to the next
FRICTION = 0.02  # 1/fs
SKIN = 0.6  # Å, of neighbour lists that serve some steps


class Atoms(NamedTuple):
    """A crystal: atomic numbers [N], positions [N, 3] and cell [3, 3], Å."""

    z: np.ndarray
    pos: np.ndarray
    cell: np.ndarray


def made(
    name: str,
    labeller: Labeller,
    sizes: Sequence[int],
    seed: int,
    key: str,
    frames: Callable[[int, np.random.Generator, str], list[Frame]],
    note: str,
) -> PotentialDataset:
    """Return training, validation and test structures, ``sizes`` of them, from the cache if there.

    ``frames`` makes as many of a split as it is asked for; ``key`` names it and its version. Raises
    DataError for sizes that are none.
    """
    if len(sizes) != len(SPLITS) or min(sizes) < 0 or not sizes[0]:
        raise DataError(f"data.sizes={list(sizes)}: expected numbers of train, val and test")

    def make() -> Arrays:
        parts = [
            frames(size, np.random.default_rng((seed, number)), split)
            for number, (split, size) in enumerate(zip(SPLITS, sizes, strict=True))
        ]
        splits = [split for split, part in zip(SPLITS, parts, strict=True) for _ in part]
        return _arrays([frame for part in parts for frame in part], splits)

    arrays = cached(f"{key} {list(sizes)} {seed}", make)
    return PotentialDataset(name, _frames(arrays), arrays["split"], note, labeller=labeller)


def _arrays(frames: Sequence[Frame], splits: Sequence[str]) -> Arrays:
    """Return the arrays of all frames, one behind the other."""
    together = {key: np.concatenate([getattr(frame, key) for frame in frames])
                for key in ("z", "pos", "forces")}  # fmt: skip
    each = {key: np.array([getattr(frame, key) for frame in frames])
            for key in ("id", "cell", "energy", "stress", "group")}  # fmt: skip
    atoms = np.array([len(frame.z) for frame in frames])
    return {"atoms": atoms, "split": np.array(splits, dtype="<U5"), **together, **each}


def _frames(arrays: Arrays) -> list[Frame]:
    ends = np.cumsum(arrays["atoms"])[:-1]
    z, pos, forces = (np.split(arrays[key], ends) for key in ("z", "pos", "forces"))
    return [
        Frame(str(arrays["id"][n]), z[n], pos[n], arrays["cell"][n], float(arrays["energy"][n]),
              forces[n], arrays["stress"][n], str(arrays["group"][n]))
        for n in range(len(z))
    ]  # fmt: skip


def two_lattices(cells: int, lattice: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Return positions [8 cells^3, 3] and cell [3, 3] of two face-centred cubic lattices, Å.

    They are ``apart`` along the diagonal: 1/4 is diamond or zincblende, 1/2 rock salt. Each cubic
    cell has the four atoms of the first and then those of the second.
    """
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    basis = np.concatenate([corners, corners + apart])
    grid = np.indices((cells,) * 3).reshape(3, -1).T
    return lattice * (basis + grid[:, None]).reshape(-1, 3), lattice * cells * np.eye(3)


def masses(z: np.ndarray) -> np.ndarray:
    """Return the masses [N, 1] of atoms, u."""
    return np.array([[float(Element.from_Z(int(number)).atomic_mass)] for number in z])


def strained(atoms: Atoms, size: float, generator: np.random.Generator) -> Atoms:
    """Return a crystal with a random strain of components up to ``size``."""
    strain = generator.uniform(-size, size, (3, 3))
    deformed = np.eye(3) + (strain + strain.T) / 2
    return Atoms(atoms.z, atoms.pos @ deformed, atoms.cell @ deformed)


def rattled(atoms: Atoms, size: float, generator: np.random.Generator) -> Atoms:
    """Return a crystal with normal displacements of a deviation up to ``size``, Å."""
    scale = generator.uniform(0, size)
    return atoms._replace(pos=atoms.pos + generator.normal(scale=scale, size=atoms.pos.shape))


def batch(structures: Sequence[Atoms], cutoff: float) -> CrystalBatch:
    """Return crystals with their neighbours within ``cutoff``, Å."""
    return collate(
        [
            {
                "z": torch.from_numpy(atoms.z),
                "pos": torch.from_numpy(atoms.pos),
                "cell": torch.from_numpy(atoms.cell)[None],
            }
            for atoms in structures
        ],
        ImageRule(cutoff),
    )


def labelled(
    labeller: Labeller, structures: Sequence[Atoms], group: str, split: str
) -> list[Frame]:
    """Return crystals with what the model says of each alone."""
    frames = []
    for number, atoms in enumerate(structures, start=1):
        found = energy_forces_stress(labeller.energy, batch([atoms], labeller.cutoff))
        frames.append(
            Frame(
                id=f"{split}-{group}-{number}",
                z=atoms.z,
                pos=atoms.pos,
                cell=atoms.cell,
                energy=float(found.energy[0]),
                forces=found.forces.numpy(),
                stress=found.stress[0].numpy(),
                group=group,
            )
        )
    return frames


def in_motion(
    labeller: Labeller,
    begin: Sequence[Atoms],
    temperatures: Sequence[float],
    count: int,
    before: int,
    generator: np.random.Generator,
) -> list[Atoms]:
    """Return ``count`` frames of ``dynamics``, as many of each trajectory as it can be."""
    each = -(-count // len(begin))
    return dynamics(labeller, begin, temperatures, each, before, generator)[:count]


def deformed(
    crystal: Atoms, count: int, strain: float, rattle: float, generator: np.random.Generator
) -> list[Atoms]:
    """Return ``count`` crystals with random strains and displacements (Å) up to these."""
    bent = [strained(crystal, strain, generator) for _ in range(count)]
    return [rattled(atoms, rattle, generator) for atoms in bent]


def dynamics(
    labeller: Labeller,
    structures: Sequence[Atoms],
    temperatures: Sequence[float],
    frames: int,
    before: int,
    generator: np.random.Generator,
) -> list[Atoms]:
    """Return ``frames`` of every structure along Langevin dynamics (BAOAB), all of them at once.

    Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013). ``temperatures`` are in K;
    ``before`` steps pass before the first frame.
    """
    sizes = [len(atoms.z) for atoms in structures]
    pos = np.concatenate([atoms.pos for atoms in structures])
    mass = masses(np.concatenate([atoms.z for atoms in structures]))
    kt = BOLTZMANN * np.repeat(temperatures, sizes)[:, None]
    step = STEP / UNIT_OF_TIME
    kept = np.exp(-FRICTION * STEP)
    noise = np.sqrt((1 - kept**2) * kt / mass)
    velocity = generator.normal(size=pos.shape) * np.sqrt(kt / mass)
    near, listed = None, pos
    found: list[list[Atoms]] = [[] for _ in structures]
    for number in range(before + BETWEEN * frames + 1):
        now = [
            atoms._replace(pos=part)
            for atoms, part in zip(structures, np.split(pos, np.cumsum(sizes)[:-1]), strict=True)
        ]
        if near is None or np.abs(pos - listed).max() > SKIN / 4:
            near, listed = batch(now, labeller.cutoff + SKIN), pos
        near.pos = torch.from_numpy(pos)
        force = energy_forces_stress(labeller.energy, near).forces.numpy()
        if number:
            velocity = velocity + step / 2 * force / mass
        if number > before and (number - before) % BETWEEN == 0:
            for place, atoms in enumerate(now):
                found[place].append(atoms)
        velocity = velocity + step / 2 * force / mass
        pos = pos + step / 2 * velocity
        velocity = kept * velocity + noise * generator.normal(size=pos.shape)
        pos = pos + step / 2 * velocity
    return [frame for frames_of_one in zip(*found, strict=True) for frame in frames_of_one]
