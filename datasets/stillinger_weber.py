r"""Silicon of Stillinger and Weber: energies, forces and stresses without error, made at run time.

Phys. Rev. B 31, 5262 (1985). With :math:`h_{ij} = \exp(\gamma \sigma / (r_{ij} - a \sigma))`,

.. math::
    E = \sum_{i<j} \epsilon A (B (\sigma / r)^4 - 1) e^{\sigma / (r - a \sigma)}
      + \sum_i \sum_{j<k} \epsilon \lambda h_{ij} h_{ik} (\cos \theta_{jik} + 1/3)^2

The second sum needs no triplets: with :math:`S = \sum_j h`, :math:`V = \sum_j h \hat r` and
:math:`T = \sum_j h \hat r \hat r^T` of an atom it is :math:`\frac{\epsilon \lambda}{2} (|T|^2 +
\frac 2 3 |V|^2 + \frac 1 9 S^2 - \frac{16}{9} \sum_j h^2)`.

It is a classical model of silicon, not silicon: what is learnt from it says nothing of DFT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from matattn.cache import Arrays, cached
from matattn.errors import DataError
from matattn.potentials.dataset import Frame, Labeller, PotentialDataset
from matattn.structures.batch import CrystalBatch, collate, edge_vector
from matattn.structures.dataset import SPLITS
from matattn.structures.derivatives import energy_forces_stress
from matattn.structures.image_rule import ImageRule

SILICON, MASS = 14, 28.0855  # u
EPSILON, SIGMA = 2.1683, 2.0951  # eV, Å
A, B, RANGE, LAMBDA, GAMMA = 7.049556277, 0.6022245584, 1.80, 21.0, 1.20
CUTOFF = RANGE * SIGMA
LATTICE = 5.431  # Å
BOLTZMANN = 8.617333e-5  # eV/K
UNIT_OF_TIME = 10.1805  # fs, where Å, eV and u are units
TEMPERATURES = (300, 600, 900, 1200, 1500, 1800)  # K
STEP, BETWEEN, BEFORE = 2.0, 25, 150  # fs, steps from one frame to the next, steps before the first
FRICTION = 0.02  # 1/fs
SKIN = 0.6  # Å, of neighbour lists that serve some steps
VERSION = 1  # of what is made
_SHARES = {"MD": 0.45, "vacancy": 0.17, "surface": 0.13}  # the rest: strained crystals


def energy(batch: CrystalBatch) -> Tensor:
    """Return the energy of every structure of silicon atoms [B], eV, whatever their elements."""
    source, target = batch.edge_index
    vectors = edge_vector(batch)
    length = vectors.norm(dim=1).clamp(min=1e-9)
    near = (length > 1e-3) & (length < CUTOFF - 1e-6)
    vectors, length, target = vectors[near], length[near], target[near]
    unit = vectors / length[:, None]
    beyond = SIGMA / (length - CUTOFF)
    pair = 0.5 * EPSILON * A * (B * (SIGMA / length) ** 4 - 1) * torch.exp(beyond)
    h = torch.exp(GAMMA * beyond)
    terms = torch.cat(
        [pair[:, None], h[:, None], h[:, None].square(), h[:, None] * unit,
         (h[:, None, None] * unit[:, :, None] * unit[:, None]).flatten(1)], 1
    )  # fmt: skip
    sums = terms.new_zeros(len(batch.z), 15).index_add(0, target, terms)
    triple = (
        sums[:, 6:].square().sum(1) + sums[:, 3:6].square().sum(1) * 2 / 3
        + sums[:, 1].square() / 9 - sums[:, 2] * 16 / 9
    )  # fmt: skip
    atoms = sums[:, 0] + EPSILON * LAMBDA / 2 * triple
    return atoms.new_zeros(batch.num_graphs).index_add(0, batch.batch, atoms)


def load(name: str, sizes: Sequence[int], seed: int = 0, note: str = "") -> PotentialDataset:
    """Make training, validation and test structures, ``sizes`` of them, with exact labels.

    64 atoms in molecular dynamics at 300 to 1800 K, with a vacancy, with two surfaces, and
    strained crystals. No trajectory is in two splits. Half a minute; then they are in the cache.
    """
    if len(sizes) != len(SPLITS) or min(sizes) < 0 or not sizes[0]:
        raise DataError(f"data.sizes={list(sizes)}: expected numbers of train, val and test")
    arrays = cached(f"stillinger_weber {VERSION} {list(sizes)} {seed}", lambda: _made(sizes, seed))
    ends = np.cumsum(arrays["atoms"])[:-1]
    z, pos, forces = (np.split(arrays[key], ends) for key in ("z", "pos", "forces"))
    frames = [
        Frame(str(arrays["id"][n]), z[n], pos[n], arrays["cell"][n], float(arrays["energy"][n]),
              forces[n], arrays["stress"][n], str(arrays["group"][n]))
        for n in range(len(z))
    ]  # fmt: skip
    labeller = Labeller("Stillinger-Weber", energy, CUTOFF)
    return PotentialDataset(name, frames, arrays["split"], note, labeller=labeller)


def _made(sizes: Sequence[int], seed: int) -> Arrays:
    """Return the arrays of all frames, one behind the other."""
    frames, splits = [], []
    for number, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
        made = _frames(size, np.random.default_rng((seed, number)), split)
        frames += made
        splits += [split] * len(made)
    together = {key: np.concatenate([getattr(frame, key) for frame in frames])
                for key in ("z", "pos", "forces")}  # fmt: skip
    each = {key: np.array([getattr(frame, key) for frame in frames])
            for key in ("id", "cell", "energy", "stress", "group")}  # fmt: skip
    atoms = np.array([len(frame.z) for frame in frames])
    return {"atoms": atoms, "split": np.array(splits, dtype="<U5"), **together, **each}


def crystal(cells: int = 2, lattice: float = LATTICE) -> tuple[np.ndarray, np.ndarray]:
    """Return positions [8 cells^3, 3] and cell [3, 3] of diamond, Å."""
    corners = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0]]) / 4
    basis = np.concatenate([corners, corners + 0.25])
    grid = np.indices((cells,) * 3).reshape(3, -1).T
    return (lattice * (basis + grid[:, None]).reshape(-1, 3)), lattice * cells * np.eye(3)


def _frames(size: int, generator: np.random.Generator, split: str) -> list[Frame]:
    """Return ``size`` frames of all groups."""
    counts = {group: round(share * size) for group, share in _SHARES.items()}
    starts: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "MD": lambda: _strained(*crystal(), 0.02, generator),
        "vacancy": lambda: (crystal()[0][1:], crystal()[1]),
        "surface": _slab,
    }
    frames: list[Frame] = []
    for group, count in counts.items():
        temperatures = [t for t in TEMPERATURES if group == "MD" or t <= 1200][:count]
        if temperatures:
            each = -(-count // len(temperatures))
            made = _dynamics([starts[group]() for _ in temperatures], temperatures, each, generator)
            frames += _labelled(made[:count], group, split)
    strained = [_strained(*crystal(), 0.06, generator) for _ in range(size - sum(counts.values()))]
    moved = [(pos + generator.normal(scale=generator.uniform(0, 0.06), size=pos.shape), cell)
             for pos, cell in strained]  # fmt: skip
    return frames + _labelled(moved, "strained", split)


def _strained(
    pos: np.ndarray, cell: np.ndarray, size: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    strain = generator.uniform(-size, size, (3, 3))
    deformed = np.eye(3) + (strain + strain.T) / 2
    return pos @ deformed, cell @ deformed


def _slab() -> tuple[np.ndarray, np.ndarray]:
    """Return 64 atoms with two (001) surfaces and vacuum between them."""
    pos, cell = crystal()
    cell = cell.copy()
    cell[2, 2] += 10.0
    return pos, cell


def _batch(structures: Sequence[tuple[np.ndarray, np.ndarray]], cutoff: float) -> CrystalBatch:
    return collate(
        [
            {
                "z": torch.full((len(pos),), SILICON),
                "pos": torch.from_numpy(pos),
                "cell": torch.from_numpy(cell)[None],
            }
            for pos, cell in structures
        ],
        ImageRule(cutoff),
    )


def _labelled(
    structures: Sequence[tuple[np.ndarray, np.ndarray]], group: str, split: str
) -> list[Frame]:
    frames = []
    for number, (pos, cell) in enumerate(structures, start=1):
        found = energy_forces_stress(energy, _batch([(pos, cell)], CUTOFF))
        frames.append(
            Frame(
                id=f"{split}-{group}-{number}",
                z=np.full(len(pos), SILICON),
                pos=pos,
                cell=cell,
                energy=float(found.energy[0]),
                forces=found.forces.numpy(),
                stress=found.stress[0].numpy(),
                group=group,
            )
        )
    return frames


def _dynamics(
    structures: Sequence[tuple[np.ndarray, np.ndarray]],
    temperatures: Sequence[float],
    frames: int,
    generator: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ``frames`` of every structure along Langevin dynamics (BAOAB), all of them at once.

    Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013).
    """
    sizes = [len(pos) for pos, _ in structures]
    pos = np.concatenate([pos for pos, _ in structures])
    kt = BOLTZMANN * np.repeat(temperatures, sizes)[:, None]
    step = STEP / UNIT_OF_TIME
    kept = np.exp(-FRICTION * STEP)
    noise = np.sqrt((1 - kept**2) * kt / MASS)
    velocity = generator.normal(size=pos.shape) * np.sqrt(kt / MASS)
    cells = [cell for _, cell in structures]
    batch, listed = None, pos
    force = np.zeros_like(pos)
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in structures]
    for number in range(BEFORE + BETWEEN * frames + 1):
        if batch is None or np.abs(pos - listed).max() > SKIN / 4:
            parts = np.split(pos, np.cumsum(sizes)[:-1])
            batch, listed = _batch(list(zip(parts, cells, strict=True)), CUTOFF + SKIN), pos
        batch.pos = torch.from_numpy(pos)
        force = energy_forces_stress(energy, batch).forces.numpy()
        if number:
            velocity = velocity + step / 2 * force / MASS
        if number > BEFORE and (number - BEFORE) % BETWEEN == 0:
            for place, part in enumerate(np.split(pos, np.cumsum(sizes)[:-1])):
                found[place].append((part, cells[place]))
        velocity = velocity + step / 2 * force / MASS
        pos = pos + step / 2 * velocity
        velocity = kept * velocity + noise * generator.normal(size=pos.shape)
        pos = pos + step / 2 * velocity
    return [frame for frames_of_one in zip(*found, strict=True) for frame in frames_of_one]
