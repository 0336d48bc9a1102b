"""What an energy says of a crystal: equation of state and elastic constants.

All cells that are needed are evaluated, or relaxed, in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Lattice, Structure

from matattn.potentials.dataset import VOIGT
from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.energy_model import EnergyModel
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.relaxation import Relaxed, Settings, relax

STRAIN = 0.005  # of the elastic constants: stresses at plus and minus, and what is odd in them
VOLUMES = np.linspace(0.94, 1.06, 13)  # of the equation of state, times that of the crystal
_AT_REST = Settings(max_force=1e-4, max_stress=0.005, max_steps=2000)
_ATOMS_AT_REST = Settings(max_force=1e-4, fixed_cell=True, max_steps=2000)


@dataclass(frozen=True)
class EquationOfState:
    """Birch-Murnaghan's of third order (Birch, Phys. Rev. 71, 809, 1947), fitted to energies."""

    volumes: np.ndarray  # Å^3 per atom
    energies: np.ndarray  # eV per atom
    volume: float  # of the minimum, Å^3 per atom
    energy: float  # eV per atom
    bulk_modulus: float  # GPa
    derivative: float  # of the bulk modulus by pressure
    residual: float  # meV per atom, root mean square

    def curve(self, volumes: np.ndarray) -> np.ndarray:
        """Return the fitted energies, eV per atom."""
        eta = (self.volume / volumes) ** (2 / 3)
        scale = 9 * self.volume * self.bulk_modulus / GPA / 16
        terms = (eta - 1) ** 3 * self.derivative + (eta - 1) ** 2 * (6 - 4 * eta)
        return self.energy + scale * terms


@dataclass(frozen=True)
class ElasticConstants:
    """Stiffness C [6, 6], GPa, in Voigt's order xx yy zz yz xz xy, with shears as angles."""

    relaxed: np.ndarray
    clamped: np.ndarray  # atoms where the strain takes them
    asymmetry: float  # GPa: the largest |C_ij - C_ji|, an error of the numbers
    unrelaxed: int  # strained cells whose atoms did not come to rest

    @property
    def stable(self) -> bool:
        """Return whether every small strain costs energy (Born's criterion)."""
        return bool(np.linalg.eigvalsh(self.relaxed).min() > 0)

    def moduli(self) -> tuple[float, float]:
        """Return the bulk and shear modulus of a polycrystal, GPa (Hill, 1952)."""
        c = self.relaxed
        s = np.linalg.inv(c)
        bulk_voigt = c[:3, :3].sum() / 9
        bulk_reuss = 1 / s[:3, :3].sum()
        shear_voigt = (3 * np.trace(c[:3, :3]) - c[:3, :3].sum()) / 30 + np.trace(c[3:, 3:]) / 5
        shear_reuss = 15 / (6 * np.trace(s[:3, :3]) - 2 * s[:3, :3].sum() + 3 * np.trace(s[3:, 3:]))
        return (bulk_voigt + bulk_reuss) / 2, (shear_voigt + shear_reuss) / 2


def at_rest(potential: EnergyModel, structure: Structure) -> Relaxed:
    """Return a crystal with its cell and atoms at rest."""
    return next(relax(potential, [structure], _AT_REST))


def equation_of_state(potential: EnergyModel, structure: Structure) -> EquationOfState:
    """Fit energies of cells of the same shape, with atoms at rest."""
    atoms = len(structure)
    cells = [_strained(structure, np.cbrt(part) * np.eye(3)) for part in VOLUMES]
    found = sorted(relax(potential, cells, _ATOMS_AT_REST), key=lambda one: one.number)
    volumes = np.array([one.structure.volume for one in found]) / atoms
    energies = np.array([one.energy_after for one in found]) / atoms
    # A cubic polynomial of V^(-2/3) is this equation of state.
    x = volumes ** (-2 / 3)
    fit = np.polynomial.Polynomial.fit(x, energies, 3)
    slope = fit.deriv()
    roots = [float(r.real) for r in slope.roots() if abs(r.imag) < 1e-12]
    inside = [r for r in roots if x.min() < r < x.max() and fit.deriv(2)(r) > 0]
    if not inside:
        nothing = float("nan")
        return EquationOfState(volumes, energies, nothing, nothing, nothing, nothing, nothing)
    best = inside[0]
    volume = best**-1.5
    second, third = float(fit.deriv(2)(best)), float(fit.deriv(3)(best))
    # With V = x^(-3/2): dx/dV = -2/3 x^(5/2), and V E'' = B.
    bulk = volume * second * (4 / 9) * best**5
    derivative = 4 + (2 / 3) * best * third / second
    residual = 1000 * float(np.sqrt(np.mean((fit(x) - energies) ** 2)))
    return EquationOfState(
        volumes, energies, float(volume), float(fit(best)), float(bulk * GPA), float(derivative),
        residual,
    )  # fmt: skip


def elastic_constants(potential: EnergyModel, structure: Structure) -> ElasticConstants:
    """Return the stiffness from stresses of strained cells; ``structure`` must be at rest."""
    potential, cells = potential.double(), []
    for mode in range(6):
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            row, column = VOIGT[0][mode], VOIGT[1][mode]
            size = STRAIN if mode < 3 else STRAIN / 2  # an angle is twice the strain
            strain[row, column] = strain[column, row] = sign * size
            cells.append(_strained(structure, np.eye(3) + strain))
    clamped = _stiffness(_stresses(potential, cells))
    found = sorted(relax(potential, cells, _ATOMS_AT_REST), key=lambda one: one.number)
    relaxed = _stiffness(_stresses(potential, [one.structure for one in found]))
    return ElasticConstants(
        relaxed=(relaxed + relaxed.T) / 2,
        clamped=(clamped + clamped.T) / 2,
        asymmetry=float(np.abs(relaxed - relaxed.T).max()),
        unrelaxed=sum(bool(one.problem) for one in found),
    )


def _strained(structure: Structure, deformation: np.ndarray) -> Structure:
    lattice = Lattice(structure.lattice.matrix @ deformation)
    return Structure(lattice, structure.species, structure.frac_coords)


def _stresses(potential: EnergyModel, cells: Sequence[Structure]) -> np.ndarray:
    """Return stresses [cells, 6], GPa."""
    batch = potential.batch([
        {"z": cell.atomic_numbers, "pos": cell.cart_coords, "cell": cell.lattice.matrix}
        for cell in cells
    ])  # fmt: skip
    stress = energy_forces_stress(potential.energy, batch).stress.cpu().numpy()
    return stress[:, VOIGT[0], VOIGT[1]] * GPA


def _stiffness(stresses: np.ndarray) -> np.ndarray:
    """Return C [6, 6]: column j has the stresses under strain j."""
    plus, minus = stresses[::2], stresses[1::2]
    return ((plus - minus) / (2 * STRAIN)).T
