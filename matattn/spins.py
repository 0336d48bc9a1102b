r"""Spins 1/2 with Heisenberg exchange on a lattice: the Hamiltonian, exact states and symmetry.

.. math::
    H = J_1 \sum_{(ij) \in 1} S_i \cdot S_j + J_2 \sum_{(ij) \in 2} S_i \cdot S_j

Energies are in units of S.S with :math:`J_1 = 1`. NetKet uses Pauli matrices: its energies are
``PAULI`` times as large.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from matattn.errors import DataError

if TYPE_CHECKING:
    from netket.graph import Lattice
    from netket.hilbert import Spin
    from netket.operator import DiscreteJaxOperator
    from netket.sampler import MetropolisSampler
    from scipy.sparse import csr_matrix

PAULI = 4  # sigma.sigma over S.S
MOST_EXACT_SITES = 20  # Lanczos: 184,756 states of Sz = 0, seconds

_BASES = {
    "chain": ((1.0,),),
    "square": ((1.0, 0.0), (0.0, 1.0)),
    "ladder": ((1.0, 0.0), (0.0, 1.0)),
    "triangular": ((1.0, 0.0), (0.5, 3**0.5 / 2)),
}
LATTICES = tuple(_BASES)
MOST_SITES = 4096  # tables hold all pairs of sites
_COORDINATION = {"chain": 2, "square": 4, "triangular": 6}  # first and second neighbours alike


def displacements(extent: tuple[int, ...]) -> np.ndarray:
    """Return the index of the displacement from cell i to cell j of a periodic grid, [n, n].

    Cells are numbered row-major; displacement (dx, dy, ...) has the index of the cell that it
    leads to from cell 0.
    """
    cells = grid_places(extent)
    shift = (cells[None] - cells[:, None]) % np.array(extent)
    return np.ravel_multi_index(tuple(np.moveaxis(shift, -1, 0)), extent)


def grid_places(extent: tuple[int, ...]) -> np.ndarray:
    """Return the integer coordinates of the cells of a grid [n, D], row-major."""
    return np.stack(np.unravel_index(np.arange(math.prod(extent)), extent), axis=-1)


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
        total_sz: z component of the total spin of all states.
        marshall: rotate the spins of one sublattice by pi about z (Marshall's sign rule). The
            ground state is then positive for J2 = 0.
        reference: the published ground-state energy, if there is one.

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
        if self.sites > MOST_SITES:
            raise DataError(f"extent={self.extent}: expected at most {MOST_SITES} sites in all")
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
        """Return whether all sites have the neighbours of the infinite lattice, of both kinds."""
        if any(n < 3 for n, closed in zip(self.extent, self.periodic, strict=True) if closed):
            return False
        if self.lattice == "ladder":
            return True
        neighbours = _COORDINATION[self.lattice] * self.sites
        return bool((2 * np.bincount(self.bond_kinds, minlength=2) == neighbours).all())

    @property
    def sites(self) -> int:
        """Return the number of sites N."""
        return math.prod(self.extent)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Return for each direction whether it is periodic."""
        return (True, False) if self.lattice == "ladder" else (True,) * len(self.extent)

    @property
    def basis(self) -> np.ndarray:
        """Return the lattice vectors as rows, in units of the nearest-neighbour distance."""
        return np.array(_BASES[self.lattice])

    @cached_property
    def cells(self) -> np.ndarray:
        """Return the integer coordinates of the sites [N, D]."""
        return grid_places(self.extent)

    @cached_property
    def graph(self) -> Lattice:
        """Return NetKet's graph; edges of colour 0 carry J1, those of colour 1 J2."""
        from netket.graph import Lattice

        return Lattice(
            basis_vectors=self.basis,
            extent=list(self.extent),
            pbc=list(self.periodic),
            max_neighbor_order=2,
        )

    @cached_property
    def _edges(self) -> np.ndarray:
        """Return site, site and colour of every bond [K, 3], sorted by colour."""
        edges = self.graph.edges(return_color=True)
        return np.array(sorted(edges, key=lambda edge: (edge[2], *edge[:2])))

    @cached_property
    def bonds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs of sites [K, 2], their exchange constants [K] and their ``signs`` [K]."""
        pairs = self._edges[:, :2]
        return pairs, np.array([self.j1, self.j2])[self.bond_kinds], self.signs(pairs)

    @property
    def bond_kinds(self) -> np.ndarray:
        """Return 0 for the bonds of J1 and 1 for those of J2 [K]."""
        return self._edges[:, 2]

    def signs(self, pairs: np.ndarray) -> np.ndarray:
        """Return -1 for pairs whose spin exchange changes sign in the rotated basis, else 1 [K].

        The product S^z S^z keeps its sign.
        """
        sides = self.sublattice if self.marshall else None
        return np.ones(len(pairs)) if sides is None else sides[pairs].prod(1).astype(float)

    def displacement(self, pairs: np.ndarray) -> np.ndarray:
        """Return the index of the displacement from one site to the other [K]."""
        return displacements(self.extent)[pairs[:, 0], pairs[:, 1]]

    @cached_property
    def sublattice(self) -> np.ndarray | None:
        """Return +1 and -1 of the two sublattices [N]; None when neighbours form odd loops."""
        sides = np.where(self.cells.sum(1) % 2, -1, 1)
        nearest = self._edges[self.bond_kinds == 0, :2]
        return sides if (sides[nearest].prod(1) == -1).all() else None

    @cached_property
    def symmetries(self) -> np.ndarray:
        """Return the permutations of the sites [G, N] that keep all bonds: the space group."""
        extent = np.array(self.extent)
        one, other, color = self._edges.T
        bonds = np.zeros((self.sites, self.sites), dtype=int)
        bonds[one, other] = bonds[other, one] = 1 + color
        shifts = itertools.product(
            *(range(n) if closed else (0, n - 1)
              for n, closed in zip(self.extent, self.periodic, strict=True))
        )  # fmt: skip
        permutations = []
        for shift, matrix in itertools.product(shifts, _point_operations(self)):
            moved = self.cells @ matrix.T + np.array(shift)
            inside = (moved >= 0) & (moved < extent) | np.array(self.periodic)
            if not inside.all():
                continue
            order = np.ravel_multi_index(tuple((moved % extent).T), self.extent)
            if len(np.unique(order)) == self.sites and (bonds[np.ix_(order, order)] == bonds).all():
                permutations.append(order)
        return np.unique(permutations, axis=0)

    @cached_property
    def hilbert(self) -> Spin:
        """Return NetKet's Hilbert space of the spins."""
        from netket.hilbert import Spin

        return Spin(0.5, self.sites, total_sz=self.total_sz)

    @cached_property
    def hamiltonian(self) -> DiscreteJaxOperator:
        """Return NetKet's operator, in Pauli matrices."""
        from netket.operator import Heisenberg

        rule = [self.marshall, False]
        return Heisenberg(self.hilbert, self.graph, J=[self.j1, self.j2], sign_rule=rule)

    def sampler(self, chains: int) -> MetropolisSampler:
        """Return NetKet's sampler: N proposed exchanges of up to second neighbours a sample."""
        from netket.sampler import MetropolisExchange

        return MetropolisExchange(
            self.hilbert, graph=self.graph, d_max=2, n_chains=chains, sweep_size=self.sites
        )

    def v_score(self, energy: float, variance: float) -> float:
        """Return N Var(E) / E^2 of the whole lattice, from an energy per site and its variance.

        It is 0 for an eigenstate (Wu et al., Science 386, 296 (2024)).
        """
        return self.sites * variance / energy**2

    @property
    def energy_bounds(self) -> tuple[float, float]:
        """Return bounds of the energy per site (S.S) of any state: those of independent bonds."""
        strengths = self.bonds[1]
        ends = np.stack([-0.75 * strengths, 0.25 * strengths])
        return float(ends.min(0).sum()) / self.sites, float(ends.max(0).sum()) / self.sites

    @cached_property
    def matrix(self) -> csr_matrix:
        """Return the Hamiltonian per site, S.S, of ``hilbert.all_states()``, rotated basis."""
        return self.hamiltonian.to_sparse() / (PAULI * self.sites)

    @cached_property
    def exact(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the lowest two energies per site [2] and states [states, 2], by Lanczos.

        None on more than ``MOST_EXACT_SITES`` sites. Rows of states are those of ``matrix``.
        """
        if self.sites > MOST_EXACT_SITES:
            return None
        from scipy.sparse.linalg import eigsh

        size = self.matrix.shape[0]
        if size <= 32:
            energies, states = np.linalg.eigh(self.matrix.toarray())
        else:
            start = np.random.default_rng(0).normal(size=size)
            energies, states = eigsh(self.matrix, k=2, which="SA", tol=0, v0=start)
        order = energies.argsort()[:2]
        return energies[order], states[:, order]

    def fingerprint(self) -> str:
        """Return a SHA-256 that tells systems apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _point_operations(system: SpinSystem) -> list[np.ndarray]:
    """Return integer matrices that map the infinite lattice onto itself."""
    if system.lattice == "triangular":
        turn, mirror = np.array([[0, -1], [1, 1]]), np.array([[0, 1], [1, 0]])
        turns = [np.linalg.matrix_power(turn, k) for k in range(6)]
        return [operation for t in turns for operation in (t, t @ mirror)]
    size = len(system.extent)
    return [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(size))
        for signs in itertools.product((1, -1), repeat=size)
    ]
