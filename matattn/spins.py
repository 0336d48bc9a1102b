"""Spins 1/2 with Heisenberg exchange on a lattice: the Hamiltonian, its exact states, its symmetry.

.. math::
    H = J_1 \\sum_{(ij) \\in 1} S_i \\cdot S_j + J_2 \\sum_{(ij) \\in 2} S_i \\cdot S_j

Energies are in units of S.S with :math:`J_1 = 1`. NetKet counts in Pauli matrices: its energies are
``PAULI`` times as large.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from matattn.errors import DataError

if TYPE_CHECKING:
    from netket.graph import Lattice
    from netket.hilbert import Spin
    from netket.operator import DiscreteJaxOperator

PAULI = 4  # sigma.sigma over S.S
MOST_EXACT_SITES = 20  # Lanczos: 184,756 states of Sz = 0, seconds

_BASES = {
    "chain": ((1.0,),),
    "square": ((1.0, 0.0), (0.0, 1.0)),
    "ladder": ((1.0, 0.0), (0.0, 1.0)),
    "triangular": ((1.0, 0.0), (0.5, 3**0.5 / 2)),
}
LATTICES = tuple(_BASES)
_COORDINATION = {"chain": 2, "square": 4, "triangular": 6}  # first and second neighbours alike


@dataclass(frozen=True)
class Reference:
    """A published ground-state energy."""

    energy_per_site: float  # S.S
    source: str


@dataclass(frozen=True)
class SpinSystem:
    """A finite lattice of spins 1/2 with exchange between nearest and second-nearest neighbours.

    Args:
        name: for reports.
        lattice: one of ``LATTICES``; periodic in every direction, a ladder along its legs only.
        extent: sites along each direction; sites are numbered row-major.
        j1, j2: exchange constants; positive is antiferromagnetic.
        total_sz: z component of the total spin of the states that are looked at.
        marshall: rotate the spins of one sublattice by pi about z (Marshall's sign rule). The
            ground state is then positive for J2 = 0.
        reference: of the ground state, where it is published.

    Raises DataError when the lattice is unknown or too small, ``total_sz`` does not exist on it, or
    Marshall's rule does not: it needs nearest neighbours on two sublattices.
    """

    name: str
    lattice: str
    extent: tuple[int, ...]
    j1: float
    j2: float
    total_sz: float
    marshall: bool
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if self.lattice not in _BASES:
            raise DataError(f"lattice={self.lattice!r}: expected one of {', '.join(LATTICES)}")
        if len(self.extent) != len(_BASES[self.lattice]):
            raise DataError(
                f"a {self.lattice} has {len(_BASES[self.lattice])} directions, "
                f"but extent={self.extent}"
            )
        if min(self.extent) < 2 or not self._bonds_are_single():
            raise DataError(
                f"extent={self.extent} is too small for a {self.lattice}: two sites would be "
                "neighbours twice, on both ways around; take more sites"
            )
        if abs(self.total_sz) > self.sites / 2 or (2 * self.total_sz - self.sites) % 2:
            raise DataError(
                f"total_sz={self.total_sz:g} does not exist for {self.sites} spins 1/2: from "
                f"{-self.sites / 2:g} to {self.sites / 2:g} in steps of 1"
            )
        if self.marshall and self.sublattice is None:
            raise DataError(
                f"Marshall's sign rule needs nearest neighbours on two sublattices, and the "
                f"{'x'.join(map(str, self.extent))} {self.lattice} has odd loops; set "
                "marshall=false"
            )

    def _bonds_are_single(self) -> bool:
        """Whether every site has as many neighbours of both kinds as on the infinite lattice."""
        if any(n < 3 for n, closed in zip(self.extent, self.periodic, strict=True) if closed):
            return False
        if self.lattice == "ladder":
            return True
        colors = [edge[2] for edge in self.graph.edges(return_color=True)]
        neighbours = _COORDINATION[self.lattice] * self.sites
        return 2 * colors.count(0) == neighbours == 2 * colors.count(1)

    @property
    def sites(self) -> int:
        return int(np.prod(self.extent))

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Of each direction."""
        return (True, False) if self.lattice == "ladder" else (True,) * len(self.extent)

    @property
    def basis(self) -> np.ndarray:
        """Lattice vectors as rows, in units of the nearest-neighbour distance."""
        return np.array(_BASES[self.lattice])

    @cached_property
    def cells(self) -> np.ndarray:
        """Integer coordinates of the sites [N, D]."""
        return np.stack(np.unravel_index(np.arange(self.sites), self.extent), axis=-1)

    @cached_property
    def graph(self) -> Lattice:
        """NetKet's graph; edges of colour 0 carry J1, those of colour 1 J2."""
        from netket.graph import Lattice

        return Lattice(
            basis_vectors=self.basis,
            extent=list(self.extent),
            pbc=list(self.periodic),
            max_neighbor_order=2,
        )

    @cached_property
    def bonds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of sites [K, 2]; exchange constant of each [K]; its sign after the rotation [K].

        The sign is -1 where the rotation turns the sign of the spin exchange; the product
        S^z S^z is not touched.
        """
        edges = sorted(self.graph.edges(return_color=True), key=lambda e: (e[2], *e[:2]))
        pairs = np.array([edge[:2] for edge in edges])
        color = np.array([edge[2] for edge in edges])
        sides = self.sublattice if self.marshall else None
        sign = np.ones(len(pairs)) if sides is None else sides[pairs].prod(1).astype(float)
        return pairs, np.where(color == 0, self.j1, self.j2), sign

    @property
    def bond_kinds(self) -> np.ndarray:
        """0 for the bonds of J1, 1 for those of J2 [K]."""
        return np.array(sorted(edge[2] for edge in self.graph.edges(return_color=True)))

    def displacement(self, pairs: np.ndarray) -> np.ndarray:
        """Number of the displacement from one site to the other, as that of a site [K]."""
        one, other = self.cells[pairs[..., 0]], self.cells[pairs[..., 1]]
        shift = (other - one) % np.array(self.extent)
        return np.ravel_multi_index(tuple(np.moveaxis(shift, -1, 0)), self.extent)

    @cached_property
    def sublattice(self) -> np.ndarray | None:
        """+1 and -1 of the two sublattices [N], or None when nearest neighbours form odd loops."""
        sides = np.where(self.cells.sum(1) % 2, -1, 1)
        pairs = np.array([edge[:2] for edge in self.graph.edges(return_color=True) if not edge[2]])
        return sides if (sides[pairs].prod(1) == -1).all() else None

    @cached_property
    def symmetries(self) -> np.ndarray:
        """Permutations of the sites [G, N] that keep all bonds: translations and point group."""
        extent = np.array(self.extent)
        bonds = self._bond_matrix(np.arange(self.sites))
        shifts = itertools.product(
            *(range(n) if closed else (0, n - 1)
              for n, closed in zip(self.extent, self.periodic, strict=True))
        )  # fmt: skip
        found = []
        for shift, matrix in itertools.product(shifts, _point_operations(self)):
            moved = self.cells @ matrix.T + np.array(shift)
            inside = (moved >= 0) & (moved < extent) | np.array(self.periodic)
            if not inside.all():
                continue
            order = np.ravel_multi_index(tuple((moved % extent).T), self.extent)
            if len(np.unique(order)) == self.sites and (self._bond_matrix(order) == bonds).all():
                found.append(order)
        return np.unique(found, axis=0)

    def _bond_matrix(self, order: np.ndarray) -> np.ndarray:
        """1 + colour of the bond between the sites ``order[i]`` and ``order[j]``, or 0 [N, N]."""
        matrix = np.zeros((self.sites, self.sites), dtype=int)
        for one, other, color in self.graph.edges(return_color=True):
            matrix[one, other] = matrix[other, one] = 1 + color
        return matrix[np.ix_(order, order)]

    @cached_property
    def hilbert(self) -> Spin:
        from netket.hilbert import Spin

        return Spin(0.5, self.sites, total_sz=self.total_sz)

    @cached_property
    def hamiltonian(self) -> DiscreteJaxOperator:
        """NetKet's operator, in Pauli matrices."""
        from netket.operator import Heisenberg

        rule = [self.marshall, False]
        return Heisenberg(self.hilbert, self.graph, J=[self.j1, self.j2], sign_rule=rule)

    @property
    def energy_bounds(self) -> tuple[float, float]:
        """No state has an energy per site (S.S) outside: those of independent bonds."""
        strengths = self.bonds[1]
        ends = np.stack([-0.75 * strengths, 0.25 * strengths])
        return float(ends.min(0).sum()) / self.sites, float(ends.max(0).sum()) / self.sites

    def exact(self, count: int = 2) -> tuple[np.ndarray, np.ndarray] | None:
        """The lowest energies per site [count] and states [states, count], by Lanczos.

        States are in the order of ``hilbert.all_states()`` and in the rotated basis. None on more
        than ``MOST_EXACT_SITES`` sites.
        """
        if self.sites > MOST_EXACT_SITES:
            return None
        from scipy.sparse.linalg import eigsh

        matrix = self.hamiltonian.to_sparse()
        if matrix.shape[0] <= max(32, 4 * count):
            energies, states = np.linalg.eigh(matrix.toarray())
        else:
            start = np.random.default_rng(0).normal(size=matrix.shape[0])
            energies, states = eigsh(matrix, k=count, which="SA", tol=0, v0=start)
        order = energies.argsort()[:count]
        return energies[order] / (PAULI * self.sites), states[:, order]

    def fingerprint(self) -> str:
        """Tells systems apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _point_operations(system: SpinSystem) -> list[np.ndarray]:
    """Integer matrices that map the lattice onto itself, some not the finite one."""
    if system.lattice == "triangular":
        turn, mirror = np.array([[0, -1], [1, 1]]), np.array([[0, 1], [1, 0]])
        turns = [np.linalg.matrix_power(turn, k) for k in range(6)]
        return [part for t in turns for part in (t, t @ mirror)]
    size = len(system.extent)
    return [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(size))
        for signs in itertools.product((1, -1), repeat=size)
    ]
