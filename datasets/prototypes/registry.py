"""The structure types of the data set ``prototypes``, and how to build their crystals.

Types are named after a mineral or compound. Sites are in coordinates of the conventional cell of
the International Tables for Crystallography A, one per site of the primitive cell. Ideal shapes are
those of well-known compounds of the type, rounded; see M. J. Mehl et al., Comput. Mater. Sci. 136,
S1 (2017) for pictures and sources of most types. The tests compare every space group with spglib's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, sqrt

import numpy as np
from pymatgen.core import Element, Lattice, Structure


@dataclass(frozen=True)
class Parameter:
    """A free shape parameter: name, ideal (starting) value, and bounds of the relaxation."""

    name: str
    ideal: float
    low: float
    high: float


@dataclass(frozen=True)
class Prototype:
    """A structure type.

    Attributes:
        name: the key in :data:`PROTOTYPES`.
        space_group: International Tables number at generic values of the free parameters.
        lattice: crystal system and centring, e.g. ``"tetragonal I"``; ``"hexagonal R"`` is
            rhombohedral, on hexagonal axes.
        parameters: free parameters; ``c/a`` is the first in every lattice that is not cubic.
        sites: one ``letter x y z`` per site of the primitive cell, separated by commas, in
            fractional coordinates of the conventional cell, affine in the parameters (``1/2-z``).
    """

    name: str
    space_group: int
    lattice: str
    parameters: tuple[Parameter, ...]
    sites: str

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """Return the site letter of every atom of the primitive cell, in order."""
        return tuple(site.split()[0] for site in self.sites.split(","))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Return the number of atoms of the primitive cell on each site letter A, B, ..."""
        return tuple(self.letters.count(letter) for letter in sorted(set(self.letters)))

    @property
    def num_elements(self) -> int:
        """Return the number of site letters, i.e. of element symbols that :meth:`build` expects."""
        return len(self.counts)

    @property
    def num_atoms(self) -> int:
        """Return the number of atoms in the primitive cell."""
        return len(self.letters)

    @property
    def ideal_shape(self) -> tuple[float, ...]:
        """Return the ideal values of the free parameters."""
        return tuple(parameter.ideal for parameter in self.parameters)

    def formula(self, elements: Sequence[str]) -> str:
        """Return the formula in site order, e.g. ``SrTiO3``: the second half of a row's id."""
        divisor = gcd(*self.counts)
        amounts = [count // divisor for count in self.counts]
        pairs = zip(elements, amounts, strict=True)
        return "".join(f"{element}{amount if amount > 1 else ''}" for element, amount in pairs)

    def build(self, elements: Sequence[str], volume: float, shape: Sequence[float]) -> Structure:
        """Build the primitive cell; arguments and errors as in :func:`build_structure`."""
        if len(elements) != self.num_elements:
            raise ValueError(
                f"{self.name} takes {self.num_elements} element(s), got {list(elements)}"
            )
        if len(shape) != len(self.parameters):
            names = ", ".join(parameter.name for parameter in self.parameters) or "none"
            raise ValueError(f"{self.name} takes the parameters: {names}; got {list(shape)}")
        if not (np.isfinite(volume) and volume > 0):
            raise ValueError(f"volume must be positive and finite (Å^3/atom), got {volume}")
        species = [Element(symbol) for symbol in elements]
        system, centring = self.lattice.split()
        cell = _conventional_cell(system, 1.0 if system == "cubic" else shape[0])
        cell = _PRIMITIVE[centring] @ cell
        cell *= (volume * self.num_atoms / abs(np.linalg.det(cell))) ** (1 / 3)
        constant, linear = self._affine_sites
        frac = (constant + linear @ np.asarray(shape, dtype=float)) @ _TO_PRIMITIVE[centring]
        frac -= np.floor(frac + 1e-12)  # a coordinate of -1e-17 belongs at 0, not at 1
        return Structure(Lattice(cell), [species[ord(k) - ord("A")] for k in self.letters], frac)

    @cached_property
    def _affine_sites(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sites as arrays: frac = constant [N, 3] + linear [N, 3, P] @ shape [P]."""
        names = [parameter.name for parameter in self.parameters]
        constant = np.zeros((self.num_atoms, 3))
        linear = np.zeros((self.num_atoms, 3, len(names)))
        for atom, site in enumerate(self.sites.split(",")):
            for axis, text in enumerate(site.split()[1:]):
                for sign, number, name in _TERM.findall(text):
                    value = float(Fraction(number or 1)) * (-1 if sign == "-" else 1)
                    if name:
                        linear[atom, axis, names.index(name)] += value
                    else:
                        constant[atom, axis] += value
        return constant, linear


_TERM = re.compile(r"([+-]?)(?=[\da-z])(\d+(?:/\d+)?)?([a-z]?)")

# Rows are primitive vectors in terms of conventional ones (R: obverse setting on hexagonal axes).
_PRIMITIVE = {
    "P": np.eye(3),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
_TO_PRIMITIVE = {centring: np.linalg.inv(matrix) for centring, matrix in _PRIMITIVE.items()}


def _conventional_cell(system: str, c_over_a: float) -> np.ndarray:
    """Return the conventional cell with a = 1; rows are lattice vectors."""
    if system == "hexagonal":
        return np.array([[1, 0, 0], [-1 / 2, sqrt(3) / 2, 0], [0, 0, c_over_a]])
    return np.diag([1.0, 1.0, c_over_a])


def _read_registry(text: str) -> dict[str, Prototype]:
    """Parse entries of a name, space group and lattice, free parameters (if any), and sites."""
    entry = r"^(\w+): (\d+), (.+)\n((?: +[a-z].*\n)?)((?: +[A-Z].*\n)+)"
    prototypes = {}
    for name, space_group, lattice, parameters, sites in re.findall(entry, text, re.MULTILINE):
        table = [parameter.split() for parameter in parameters.split(";") if parameter.strip()]
        prototypes[name] = Prototype(
            name=name,
            space_group=int(space_group),
            lattice=lattice,
            parameters=tuple(
                Parameter(key, float(ideal), float(low), float(high))
                for key, ideal, low, high in table
            ),
            sites=" ".join(sites.split()),
        )
    return prototypes


PROTOTYPES: dict[str, Prototype] = _read_registry("""
# Free parameters: name, ideal value, bounds.

# Elements
fcc: 225, cubic F
    A 0 0 0
bcc: 229, cubic I
    A 0 0 0
sc: 221, cubic P
    A 0 0 0
hcp: 194, hexagonal P
    c/a 1.633 1.35 1.95
    A 1/3 2/3 1/4, A 2/3 1/3 3/4
diamond: 227, cubic F
    A 0 0 0, A 1/4 1/4 1/4
beta_tin: 141, tetragonal I
    c/a 0.546 0.4 0.9
    A 0 0 0, A 0 1/2 1/4
# simple cubic is the special case c/a = sqrt(6), z = 1/4
arsenic: 166, hexagonal R
    c/a 2.7 2.47 3.3; z 0.228 0.208 0.248
    A 0 0 z, A 0 0 -z

# AB
rocksalt: 225, cubic F
    A 0 0 0, B 1/2 1/2 1/2
cesium_chloride: 221, cubic P
    A 0 0 0, B 1/2 1/2 1/2
zincblende: 216, cubic F
    A 0 0 0, B 1/4 1/4 1/4
wurtzite: 186, hexagonal P
    c/a 1.633 1.35 1.9; u 0.375 0.33 0.46
    A 1/3 2/3 0, A 2/3 1/3 1/2, B 1/3 2/3 u, B 2/3 1/3 u+1/2
nickel_arsenide: 194, hexagonal P
    c/a 1.6 1.1 2.1
    A 0 0 0, A 0 0 1/2, B 1/3 2/3 1/4, B 2/3 1/3 3/4
tungsten_carbide: 187, hexagonal P
    c/a 0.98 0.75 1.3
    A 0 0 0, B 1/3 2/3 1/2
# B20; rocksalt is the special case u = 0, v = 1/2
iron_silicide: 198, cubic P
    u 0.137 0.08 0.2; v 0.842 0.78 0.9
    A u u u, A 1/2-u -u 1/2+u, A -u 1/2+u 1/2-u, A 1/2+u 1/2-u -u, B v v v, B 1/2-v -v 1/2+v,
    B -v 1/2+v 1/2-v, B 1/2+v 1/2-v -v
# L1_0; fcc sites at c/a = sqrt(2), CsCl at c/a = 1
copper_gold: 123, tetragonal P
    c/a 1.35 1.12 1.75
    A 0 0 0, B 1/2 1/2 1/2
# L1_1; fcc sites at c/a = sqrt(24)
copper_platinum: 166, hexagonal R
    c/a 4.9 3.8 6.2
    A 0 0 0, B 0 0 1/2
# B32
sodium_thallide: 227, cubic F
    A 0 0 0, A 1/4 1/4 1/4, B 1/2 1/2 1/2, B 3/4 3/4 3/4
# B10
litharge: 129, tetragonal P
    c/a 1.26 0.85 1.7; z 0.237 0.15 0.33
    A 0 1/2 z, A 1/2 0 -z, B 0 0 0, B 1/2 1/2 0

# AB2
fluorite: 225, cubic F
    A 0 0 0, B 1/4 1/4 1/4, B 3/4 3/4 3/4
rutile: 136, tetragonal P
    c/a 0.65 0.45 0.95; u 0.305 0.26 0.35
    A 0 0 0, A 1/2 1/2 1/2, B u u 0, B -u -u 0, B 1/2+u 1/2-u 1/2, B 1/2-u 1/2+u 1/2
anatase: 141, tetragonal I
    c/a 2.5 1.8 3.3; z 0.208 0.16 0.26
    A 0 0 0, A 0 1/2 1/4, B 0 0 z, B 0 0 -z, B 0 1/2 1/4+z, B 0 1/2 1/4-z
cadmium_iodide: 164, hexagonal P
    c/a 1.6 1.1 2.2; z 0.25 0.15 0.36
    A 0 0 0, B 1/3 2/3 z, B 2/3 1/3 -z
cadmium_chloride: 166, hexagonal R
    c/a 4.8 3.4 6.6; z 0.25 0.2 0.3
    A 0 0 0, B 0 0 z, B 0 0 -z
molybdenite: 194, hexagonal P
    c/a 3.9 2.9 5.2; z 0.621 0.585 0.665
    A 1/3 2/3 1/4, A 2/3 1/3 3/4, B 1/3 2/3 z, B 2/3 1/3 1/2+z, B 2/3 1/3 -z, B 1/3 2/3 1/2-z
pyrite: 205, cubic P
    u 0.385 0.33 0.43
    A 0 0 0, A 1/2 0 1/2, A 0 1/2 1/2, A 1/2 1/2 0, B u u u, B 1/2-u -u 1/2+u, B -u 1/2+u 1/2-u,
    B 1/2+u 1/2-u -u, B -u -u -u, B 1/2+u u 1/2-u, B u 1/2-u 1/2+u, B 1/2-u 1/2+u u
cuprite: 224, cubic P
    A 0 0 0, A 1/2 1/2 1/2, B 1/4 1/4 1/4, B 3/4 3/4 1/4, B 3/4 1/4 3/4, B 1/4 3/4 3/4
cristobalite: 227, cubic F
    A 0 0 0, A 1/4 1/4 1/4, B 1/8 1/8 1/8, B 1/8 7/8 7/8, B 7/8 1/8 7/8, B 7/8 7/8 1/8
# C15, MgCu2
laves: 227, cubic F
    A 0 0 0, A 1/4 1/4 1/4, B 5/8 5/8 5/8, B 5/8 7/8 7/8, B 7/8 5/8 7/8, B 7/8 7/8 5/8
aluminium_diboride: 191, hexagonal P
    c/a 1.08 0.65 1.6
    A 0 0 0, B 1/3 2/3 1/2, B 2/3 1/3 1/2
# C11b; bcc sites at c/a = 3, z = 1/3
molybdenum_silicide: 139, tetragonal I
    c/a 2.6 1.8 4.0; z 0.333 0.27 0.4
    A 0 0 0, B 0 0 z, B 0 0 -z
# B8_2, Ni2In
nickel_indide: 194, hexagonal P
    c/a 1.22 0.9 1.7
    A 1/3 2/3 1/4, A 2/3 1/3 3/4, B 0 0 0, B 0 0 1/2, B 1/3 2/3 3/4, B 2/3 1/3 1/4

# AB3 to AB6, and A2B3
# L1_2
copper3_gold: 221, cubic P
    A 0 0 0, B 0 1/2 1/2, B 1/2 0 1/2, B 1/2 1/2 0

# D0_22; fcc sites at c/a = 2
aluminium3_titanium: 139, tetragonal I
    c/a 2.1 1.6 2.7
    A 0 0 0, B 0 0 1/2, B 0 1/2 1/4, B 1/2 0 1/4

# D0_3
bismuth_fluoride: 225, cubic F
    A 0 0 0, B 1/2 1/2 1/2, B 1/4 1/4 1/4, B 3/4 3/4 3/4

# D0_19; hcp sites at c/a = 0.816, x = 5/6
nickel3_tin: 194, hexagonal P
    c/a 0.81 0.68 0.98; x 0.84 0.79 0.88
    A 1/3 2/3 1/4, A 2/3 1/3 3/4, B x 2x 1/4, B -2x -x 1/4, B x -x 1/4, B -x -2x 3/4, B 2x x 3/4,
    B -x x 3/4

# A15
chromium3_silicon: 223, cubic P
    A 0 0 0, A 1/2 1/2 1/2, B 1/4 0 1/2, B 3/4 0 1/2, B 1/2 1/4 0, B 1/2 3/4 0, B 0 1/2 1/4,
    B 0 1/2 3/4
rhenium_oxide: 221, cubic P
    A 0 0 0, B 1/2 0 0, B 0 1/2 0, B 0 0 1/2

# D0_18
sodium_arsenide: 194, hexagonal P
    c/a 1.78 1.45 2.2; z 0.583 0.54 0.63
    A 1/3 2/3 1/4, A 2/3 1/3 3/4, B 0 0 1/4, B 0 0 3/4, B 1/3 2/3 z, B 2/3 1/3 1/2+z, B 2/3 1/3 -z,
    B 1/3 2/3 1/2-z
lithium_nitride: 191, hexagonal P
    c/a 1.06 0.8 1.45
    A 0 0 0, B 0 0 1/2, B 1/3 2/3 0, B 2/3 1/3 0

# D1_3
barium_aluminide: 139, tetragonal I
    c/a 2.5 1.9 3.3; z 0.38 0.34 0.43
    A 0 0 0, B 0 1/2 1/4, B 1/2 0 1/4, B 0 0 z, B 0 0 -z

# D2_d
calcium_copper5: 191, hexagonal P
    c/a 0.8 0.62 1.05
    A 0 0 0, B 1/3 2/3 0, B 2/3 1/3 0, B 1/2 0 1/2, B 0 1/2 1/2, B 1/2 1/2 1/2

# D2_1
calcium_boride: 221, cubic P
    x 0.207 0.17 0.24
    A 0 0 0, B x 1/2 1/2, B -x 1/2 1/2, B 1/2 x 1/2, B 1/2 -x 1/2, B 1/2 1/2 x, B 1/2 1/2 -x
corundum: 167, hexagonal R
    c/a 2.73 2.35 3.2; z 0.352 0.32 0.385; x 0.306 0.26 0.35
    A 0 0 z, A 0 0 1/2-z, A 0 0 -z, A 0 0 1/2+z, B x 0 1/4, B 0 x 1/4, B -x -x 1/4, B -x 0 3/4,
    B 0 -x 3/4, B x x 3/4
# Bi2Te2S; Bi2Te3
tetradymite: 166, hexagonal R
    c/a 7.0 5.2 9.0; u 0.4 0.365 0.435; v 0.212 0.175 0.25
    A 0 0 u, A 0 0 -u, B 0 0 0, B 0 0 v, B 0 0 -v
lanthanum_oxide: 164, hexagonal P
    c/a 1.56 1.2 2.0; u 0.246 0.19 0.3; v 0.647 0.59 0.7
    A 1/3 2/3 u, A 2/3 1/3 -u, B 0 0 0, B 1/3 2/3 v, B 2/3 1/3 -v

# Three and four elements
# C1_b, MgAgAs
half_heusler: 216, cubic F
    A 0 0 0, B 1/2 1/2 1/2, C 1/4 1/4 1/4
# L2_1
heusler: 225, cubic F
    A 1/4 1/4 1/4, A 3/4 3/4 3/4, B 0 0 0, C 1/2 1/2 1/2
# Hg2CuTi
inverse_heusler: 216, cubic F
    A 0 0 0, A 1/4 1/4 1/4, B 1/2 1/2 1/2, C 3/4 3/4 3/4
# PbFCl
matlockite: 129, tetragonal P
    c/a 1.76 1.3 2.4; u 0.206 0.15 0.26; v 0.65 0.59 0.71
    A 1/4 1/4 u, A 3/4 3/4 -u, B 3/4 1/4 0, B 1/4 3/4 0, C 1/4 1/4 v, C 3/4 3/4 -v
zirconium_beryllium_silicide: 194, hexagonal P
    c/a 1.8 1.25 2.4
    A 0 0 0, A 0 0 1/2, B 1/3 2/3 1/4, B 2/3 1/3 3/4, C 1/3 2/3 3/4, C 2/3 1/3 1/4
# alpha-NaFeO2
sodium_ferrite: 166, hexagonal R
    c/a 5.1 3.9 6.8; z 0.24 0.2 0.3
    A 0 0 0, B 0 0 1/2, C 0 0 z, C 0 0 -z
delafossite: 166, hexagonal R
    c/a 5.7 4.2 7.4; z 0.11 0.075 0.145
    A 0 0 0, B 0 0 1/2, C 0 0 z, C 0 0 -z
chalcopyrite: 122, tetragonal I
    c/a 1.97 1.6 2.4; x 0.25 0.15 0.35
    A 0 0 0, A 0 1/2 1/4, B 0 0 1/2, B 0 1/2 3/4, C x 1/4 1/8, C -x 3/4 1/8, C 3/4 x 7/8,
    C 1/4 -x 7/8
# gamma-LiFeO2
lithium_ferrite: 141, tetragonal I
    c/a 2.1 1.7 2.6; z 0.245 0.19 0.3
    A 0 0 0, A 0 1/2 1/4, B 0 0 1/2, B 0 1/2 3/4, C 0 0 z, C 0 0 -z, C 0 1/2 1/4+z, C 0 1/2 1/4-z
perovskite: 221, cubic P
    A 0 0 0, B 1/2 1/2 1/2, C 1/2 1/2 0, C 1/2 0 1/2, C 0 1/2 1/2
calcite: 167, hexagonal R
    c/a 3.3 2.4 4.2; x 0.26 0.2 0.33
    A 0 0 0, A 0 0 1/2, B 0 0 1/4, B 0 0 3/4, C x 0 1/4, C 0 x 1/4, C -x -x 1/4, C -x 0 3/4,
    C 0 -x 3/4, C x x 3/4
# the 2H perovskite
barium_nickelate: 194, hexagonal P
    c/a 0.86 0.68 1.12; x 0.15 0.12 0.185
    A 1/3 2/3 3/4, A 2/3 1/3 1/4, B 0 0 0, B 0 0 1/2, C x 2x 1/4, C -2x -x 1/4, C x -x 1/4,
    C -x -2x 3/4, C 2x x 3/4, C -x x 3/4
# the normal spinel
spinel: 227, cubic F
    x 0.2625 0.2325 0.2925
    A 1/8 1/8 1/8, A 7/8 7/8 7/8, B 1/2 1/2 1/2, B 1/4 3/4 0, B 3/4 0 1/4, B 0 1/4 3/4, C x x x,
    C 3/4-x 1/4-x x+1/2, C 1/4-x x+1/2 3/4-x, C x+1/2 3/4-x 1/4-x, C x+3/4 x+1/4 1/2-x, C -x -x -x,
    C x+1/4 1/2-x x+3/4, C 1/2-x x+3/4 x+1/4
potassium_nickel_fluoride: 139, tetragonal I
    c/a 3.25 2.6 3.9; u 0.355 0.325 0.385; w 0.17 0.13 0.22
    A 0 0 u, A 0 0 -u, B 0 0 0, C 0 1/2 0, C 1/2 0 0, C 0 0 w, C 0 0 -w
thorium_chromium_silicide: 139, tetragonal I
    c/a 2.5 1.9 3.4; z 0.37 0.33 0.42
    A 0 0 0, B 0 1/2 1/4, B 1/2 0 1/4, C 0 0 z, C 0 0 -z
calcium_aluminium_silicide: 164, hexagonal P
    c/a 1.7 1.35 2.15; u 0.63 0.58 0.68; v 0.27 0.21 0.33
    A 0 0 0, B 1/3 2/3 u, B 2/3 1/3 -u, C 1/3 2/3 v, C 2/3 1/3 -v
# Cr2AlC
max_phase: 194, hexagonal P
    c/a 4.4 3.3 5.4; u 0.086 0.055 0.12
    A 1/3 2/3 u, A 2/3 1/3 1/2+u, A 2/3 1/3 -u, A 1/3 2/3 1/2-u, B 1/3 2/3 3/4, B 2/3 1/3 1/4,
    C 0 0 0, C 0 0 1/2
sulvanite: 215, cubic P
    x 0.24 0.17 0.29
    A 1/2 0 0, A 0 1/2 0, A 0 0 1/2, B 0 0 0, C x x x, C -x -x x, C -x x -x, C x -x -x
potassium_chloroplatinate: 225, cubic F
    x 0.235 0.18 0.29
    A 1/4 1/4 1/4, A 3/4 3/4 3/4, B 0 0 0, C x 0 0, C -x 0 0, C 0 x 0, C 0 -x 0, C 0 0 x, C 0 0 -x
elpasolite: 225, cubic F
    x 0.25 0.2 0.3
    A 1/4 1/4 1/4, A 3/4 3/4 3/4, B 0 0 0, C 1/2 1/2 1/2, D x 0 0, D -x 0 0, D 0 x 0, D 0 -x 0,
    D 0 0 x, D 0 0 -x
zircon: 141, tetragonal I
    c/a 0.9 0.72 1.1; y 0.184 0.14 0.22; z 0.32 0.26 0.37
    A 0 0 0, A 0 1/2 1/4, B 0 0 1/2, B 0 1/2 3/4, C 0 y z, C 0 -y z, C y 0 -z, C -y 0 -z,
    C 0 1/2+y 1/4-z, C 0 1/2-y 1/4-z, C y 1/2 1/4+z, C -y 1/2 1/4+z
# ZrCuSiAs, LaOFeAs
zirconium_copper_silicide_arsenide: 129, tetragonal P
    c/a 2.2 1.75 2.8; u 0.14 0.09 0.2; v 0.66 0.6 0.71
    A 1/4 1/4 u, A 3/4 3/4 -u, B 3/4 1/4 0, B 1/4 3/4 0, C 3/4 1/4 1/2, C 1/4 3/4 1/2, D 1/4 1/4 v,
    D 3/4 3/4 -v
""")
