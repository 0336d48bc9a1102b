r"""Sodium chloride of Tosi and Fumi: an ionic crystal and its melt, with exact Coulomb sums.

J. Phys. Chem. Solids 25, 45 (1964). Between ions at a distance r

.. math::
    \phi_{ab}(r) = \frac{q_a q_b e^2}{4 \pi \epsilon_0 r}
        + A_{ab} b\, e^{(\sigma_a + \sigma_b - r) / \rho}
        - s(r) \left(\frac{C_{ab}}{r^6} + \frac{D_{ab}}{r^8}\right)

with charges of +-1. The first term is summed over all images by Ewald's method (Ann. Phys. 369,
253, 1921),

.. math::
    E = \frac{e^2}{4 \pi \epsilon_0} \left( \frac 1 2 \sum_{i \neq j} q_i q_j
        \frac{\mathrm{erfc}(\alpha r_{ij})}{r_{ij}} + \frac{2 \pi}{V} \sum_{k \neq 0}
        \frac{e^{-k^2 / 4 \alpha^2}}{k^2} |S(k)|^2 - \frac{\alpha}{\sqrt \pi} \sum_i q_i^2 \right),
    \qquad S(k) = \sum_i q_i e^{i k \cdot r_i}

to 1e-9 of itself (a conductor around the infinite crystal). s falls smoothly from 1 to 0 between 8
and 10 Å.

It is a classical model of salt, not salt: what is learnt from it says nothing of DFT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from matattn.errors import StructureError
from matattn.potentials import sampling
from matattn.potentials.dataset import Frame, Labeller, PotentialDataset
from matattn.potentials.sampling import Atoms, strained
from matattn.structures.batch import CrystalBatch, edge_vector

SODIUM, CHLORINE = 11, 17
COULOMB = 14.39964548  # eV Å, e^2 / (4 pi epsilon_0)
B, RHO = 0.338e-19 / 1.602177e-19, 1 / 3.15  # eV, Å
SIZE = (1.170, 1.585)  # Å, of Na+ and Cl-
# Of pairs (Na Na, Na Cl, Cl Cl): Pauling's factors, and eV Å^6 and eV Å^8.
FACTOR = (1.25, 1.0, 0.75)
C = (1.68 / 1.602177, 11.2 / 1.602177, 116.0 / 1.602177)
D = (0.8 / 1.602177, 13.9 / 1.602177, 233.0 / 1.602177)
CUTOFF, SWITCH = 10.0, 8.0  # Å
ALPHA = 0.44  # 1/Å: erfc(ALPHA CUTOFF) is 5e-10
LARGEST_K = 2 * ALPHA * math.sqrt(math.log(1e10))  # 1/Å
LATTICE = 5.6  # Å
DYNAMICS = {"solid": ((300, 600, 900), LATTICE), "melt": ((1500, 1800, 2100), 6.27)}  # K, Å
BEFORE = 250  # steps before the first frame
MELTING, MELTED = 6000.0, 500  # K, steps: what makes a melt of a crystal before that
KEY = "tosi_fumi 2"  # with the version of what is made
_SHARES = {"solid": 0.35, "melt": 0.4}  # the rest: strained crystals


def energy(batch: CrystalBatch) -> Tensor:
    """Return the energy of every crystal of as many Na as Cl [B], eV; others: StructureError."""
    source, target = batch.edge_index
    length = edge_vector(batch).norm(dim=1)
    near = (length > 1e-3) & (length < CUTOFF)
    length, source, target = length[near], source[near], target[near]
    is_anion = batch.z == CHLORINE
    charge = torch.where(is_anion, -1.0, 1.0).to(length)
    total = charge.new_zeros(batch.num_graphs).index_add(0, batch.batch, charge)
    if total.any() or not (is_anion | (batch.z == SODIUM)).all():
        raise StructureError("the Tosi-Fumi model is of as many Na as Cl")
    pair = is_anion[source].long() + is_anion[target].long()
    size = length.new_tensor(SIZE)[is_anion.long()]
    factor, c, d = (length.new_tensor(values)[pair] for values in (FACTOR, C, D))
    repulsion = factor * B * torch.exp((size[source] + size[target] - length) / RHO)
    dispersion = _switch(length) * (c / length**6 + d / length**8)
    screened = COULOMB * charge[source] * charge[target] * torch.erfc(ALPHA * length) / length
    pairs = 0.5 * (repulsion - dispersion + screened)
    atoms = pairs.new_zeros(len(batch.z)).index_add(0, target, pairs)
    atoms = atoms - COULOMB * ALPHA / math.sqrt(math.pi) * charge.square()
    short = atoms.new_zeros(batch.num_graphs).index_add(0, batch.batch, atoms)
    sizes = torch.bincount(batch.batch, minlength=batch.num_graphs).tolist()
    parts = zip(batch.cell, batch.pos.split(sizes), charge.split(sizes), strict=True)
    return short + torch.stack([_reciprocal(*part) for part in parts])


def _switch(length: Tensor) -> Tensor:
    """Return a polynomial from 1 to 0 whose first two derivatives vanish at both ends."""
    t = ((length - SWITCH) / (CUTOFF - SWITCH)).clamp(0, 1)
    return 1 - t**3 * (10 - 15 * t + 6 * t**2)


def _reciprocal(cell: Tensor, pos: Tensor, charge: Tensor) -> Tensor:
    """Return the smooth part of the Coulomb energy of a crystal, eV; k and -k are one term."""
    inverse = torch.linalg.inv(cell)
    reach = (LARGEST_K / (2 * math.pi) * cell.detach().norm(dim=1)).floor().long().tolist()
    ranges = [torch.arange(-n, n + 1, device=cell.device) for n in reach]
    numbers = torch.cartesian_prod(*ranges)
    numbers = numbers[len(numbers) // 2 + 1 :].to(cell)
    k = 2 * math.pi * numbers @ inverse.T
    squared = k.square().sum(1)
    used = squared.detach() < LARGEST_K**2
    k, squared = k[used], squared[used]
    phase = pos @ k.T
    structure = (charge @ phase.cos()).square() + (charge @ phase.sin()).square()
    weight = torch.exp(-squared / (4 * ALPHA**2)) / squared
    return COULOMB * 4 * math.pi / torch.linalg.det(cell).abs() * (weight * structure).sum()


LABELLER = Labeller("Tosi-Fumi", energy, CUTOFF)


def load(name: str, sizes: Sequence[int], seed: int = 0, note: str = "") -> PotentialDataset:
    """Make training, validation and test structures, ``sizes`` of them, with exact labels.

    64 ions in molecular dynamics: crystals at 300 to 900 K, melts at 1500 to 2100 K, and strained
    crystals. No trajectory is in two splits. Minutes; then they are in the cache. Raises DataError
    for sizes that are none.
    """
    return sampling.made(name, LABELLER, sizes, seed, KEY, _frames, note)


def crystal(cells: int = 2, lattice: float = LATTICE) -> Atoms:
    """Return rock salt of 8 cells^3 ions, Å."""
    z = np.tile(np.repeat([SODIUM, CHLORINE], 4), cells**3)
    return Atoms(z, *sampling.two_lattices(cells, lattice, 0.5))


def melted(crystals: Sequence[Atoms], generator: np.random.Generator) -> list[Atoms]:
    """Return crystals after a picosecond at 6000 K, in which their order is lost."""
    hot = [MELTING] * len(crystals)
    return sampling.dynamics(LABELLER, crystals, hot, 1, MELTED - sampling.BETWEEN, generator)


def _frames(size: int, generator: np.random.Generator, split: str) -> list[Frame]:
    """Return ``size`` frames of all groups."""
    counts = {group: round(share * size) for group, share in _SHARES.items()}
    frames: list[Frame] = []
    for group, (temperatures, lattice) in DYNAMICS.items():
        if count := counts[group]:
            used = temperatures[:count]
            begin = [strained(crystal(lattice=lattice), 0.02, generator) for _ in used]
            if group == "melt":
                begin = melted(begin, generator)
            along = sampling.in_motion(LABELLER, begin, used, count, BEFORE, generator)
            frames += sampling.labelled(LABELLER, along, group, split)
    rest = sampling.deformed(crystal(), size - sum(counts.values()), 0.06, 0.1, generator)
    return frames + sampling.labelled(LABELLER, rest, "strained", split)
