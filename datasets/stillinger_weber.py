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

from matattn.potentials import sampling
from matattn.potentials.dataset import Frame, Labeller, PotentialDataset
from matattn.potentials.sampling import Atoms, strained
from matattn.structures.batch import CrystalBatch, edge_vector

SILICON = 14
EPSILON, SIGMA = 2.1683, 2.0951  # eV, Å
A, B, RANGE, LAMBDA, GAMMA = 7.049556277, 0.6022245584, 1.80, 21.0, 1.20
CUTOFF = RANGE * SIGMA
LATTICE = 5.431  # Å
TEMPERATURES = (300, 600, 900, 1200, 1500, 1800)  # K
BEFORE = 150  # steps before the first frame
KEY = "stillinger_weber 1"  # with the version of what is made
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


LABELLER = Labeller("Stillinger-Weber", energy, CUTOFF)


def load(name: str, sizes: Sequence[int], seed: int = 0, note: str = "") -> PotentialDataset:
    """Make training, validation and test structures, ``sizes`` of them, with exact labels.

    64 atoms in molecular dynamics at 300 to 1800 K, with a vacancy, with two surfaces, and
    strained crystals. No trajectory is in two splits. Half a minute; then they are in the cache.
    Raises DataError for sizes that are none.
    """
    return sampling.made(name, LABELLER, sizes, seed, KEY, _frames, note)


def crystal(cells: int = 2, lattice: float = LATTICE) -> tuple[np.ndarray, np.ndarray]:
    """Return positions [8 cells^3, 3] and cell [3, 3] of diamond, Å."""
    return sampling.two_lattices(cells, lattice, 0.25)


def silicon(pos: np.ndarray, cell: np.ndarray) -> Atoms:
    """Return silicon atoms at positions [N, 3] in a cell, Å."""
    return Atoms(np.full(len(pos), SILICON), pos, cell)


def _frames(size: int, generator: np.random.Generator, split: str) -> list[Frame]:
    """Return ``size`` frames of all groups."""
    whole = silicon(*crystal())
    counts = {group: round(share * size) for group, share in _SHARES.items()}
    starts: dict[str, Callable[[], Atoms]] = {
        "MD": lambda: strained(whole, 0.02, generator),
        "vacancy": lambda: silicon(whole.pos[1:], whole.cell),
        "surface": _slab,
    }
    frames: list[Frame] = []
    for group, count in counts.items():
        temperatures = [t for t in TEMPERATURES if group == "MD" or t <= 1200][:count]
        if temperatures:
            begin = [starts[group]() for _ in temperatures]
            along = sampling.in_motion(LABELLER, begin, temperatures, count, BEFORE, generator)
            frames += sampling.labelled(LABELLER, along, group, split)
    rest = sampling.deformed(whole, size - sum(counts.values()), 0.06, 0.06, generator)
    return frames + sampling.labelled(LABELLER, rest, "strained", split)


def _slab() -> Atoms:
    """Return 64 atoms with two (001) surfaces and vacuum between them."""
    pos, cell = crystal()
    cell = cell.copy()
    cell[2, 2] += 10.0
    return silicon(pos, cell)
