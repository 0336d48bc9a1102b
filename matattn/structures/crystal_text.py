"""Texts of crystals: the representations of MatText, and their tokens.

Alampara, Miret, Jablonka: "MatText: Do Language Models Need More than Text & Scale for Materials
Modeling?", arXiv:2406.17295. The texts equal those of the authors' library (xtal2txt 0.1.0, two
decimal places) but for ``local_env``, which needs no OpenBabel here. SLICES is left out: its
package needs TensorFlow and a neighbour list that pymatgen no longer has.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from pymatgen.core import Element, Molecule, Structure
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from matattn.errors import ConfigError, StructureError

SYMMETRY = 0.1  # Å, the tolerance of the symmetrised forms
_NEIGHBOR = 1.15  # bonded atoms are nearer than so many times the distance of the nearest one
_DECIMALS = re.compile(r"\d+\.\d+")


def composition(structure: Structure) -> str:
    """Return the atoms of the cell in Hill's order: ``Cl4Na4`` of rock salt's cubic cell."""
    return structure.composition.hill_formula.replace(" ", "")


def cif_p1(structure: Structure) -> str:
    """Return a CIF of all atoms without symmetry, numbers with at most two decimals."""
    return _cif(CifWriter(structure))


def cif_symmetrized(structure: Structure) -> str:
    """Return a CIF of the inequivalent atoms with the operations of the space group."""
    return _cif(CifWriter(structure, symprec=SYMMETRY, significant_figures=2))


def _cif(writer: CifWriter) -> str:
    text = str(writer).split("\n", 1)[1]  # the first line names pymatgen
    return _DECIMALS.sub(lambda number: str(round(float(number.group()), 2)), text)


def crystal_text_llm(structure: Structure) -> str:
    """Return lengths, angles, then elements and fractional coordinates, each on its own line.

    The form of Gruver et al., "Fine-Tuned Language Models Generate Stable Inorganic Materials as
    Text", arXiv:2402.04379. Angles are truncated as there, but rounded to 0.001 degrees before: an
    angle of 120 is written as 120 even if its last bits are below, where the original writes 119.
    """
    lattice = structure.lattice
    lines = [
        " ".join(f"{length:.1f}" for length in lattice.abc),
        " ".join(str(int(round(angle, 3))) for angle in lattice.angles),
    ]
    for site in structure:
        lines += [site.species_string, " ".join(f"{x:.2f}" for x in site.frac_coords)]
    return "\n".join(lines)


def atom_sequences(structure: Structure) -> str:
    """Return the element of every site."""
    return " ".join(site.species_string for site in structure)


def atom_sequences_plusplus(structure: Structure) -> str:
    """Return the element of every site, lattice lengths (Å) and angles (degrees)."""
    lengths = (str(round(length, 2)) for length in structure.lattice.abc)
    angles = (str(round(angle)) for angle in structure.lattice.angles)
    return " ".join([atom_sequences(structure), *lengths, *angles])


def zmatrix(structure: Structure) -> str:
    """Return internal coordinates of the atoms of the cell, without its periodicity."""
    from pymatgen.io.gaussian import GaussianInput

    molecule = Molecule([site.species_string for site in structure], structure.cart_coords)
    atoms, _, variables = GaussianInput(molecule).get_zmatrix().partition("\n\n")
    values = {}
    for line in variables.splitlines():
        name, number = line.split("=")
        values[name] = f"{float(number):.1f}" if name.startswith("B") else f"{float(number):.0f}"
    return "\n".join(
        " ".join(values.get(word, word) for word in line.split()) for line in atoms.splitlines()
    )


def local_env(structure: Structure) -> str:
    """Return the space group, and element, Wyckoff letter and neighbours of inequivalent sites.

    Neighbours are the atoms at most 15 % farther than the nearest one. MatText writes them as
    SMILES, with OpenBabel; here they are written as ``Ti 2a O6``.
    """
    symmetric = SpacegroupAnalyzer(structure, symprec=SYMMETRY).get_symmetrized_structure()
    lines = [symmetric.get_space_group_info()[0]]
    orbits = zip(symmetric.equivalent_indices, symmetric.wyckoff_symbols, strict=True)
    for sites, letter in orbits:
        near = _nearest(structure, sites[0])
        counts = {symbol: near.count(symbol) for symbol in sorted(set(near))}
        bonded = "".join(f"{symbol}{count}" for symbol, count in counts.items())
        lines.append(f"{structure[sites[0]].species_string} {letter} {bonded}")
    return "\n".join(lines)


def _nearest(structure: Structure, site: int) -> list[str]:
    radius = 4.0
    while not (atoms := structure.get_neighbors(structure[site], radius)):
        radius *= 2
    reach = _NEIGHBOR * min(atom.nn_distance for atom in atoms)
    if reach > radius:
        atoms = structure.get_neighbors(structure[site], reach)
    return [atom.species_string for atom in atoms if atom.nn_distance <= reach]


def robocrys_rep(structure: Structure) -> str:
    """Return Robocrystallographer's prose (its package takes seconds for each crystal)."""
    try:
        from robocrys import StructureCondenser, StructureDescriber
    except ModuleNotFoundError:
        raise ConfigError(
            "representation robocrys_rep needs the package robocrys: pip install robocrys"
        ) from None
    return StructureDescriber().describe(StructureCondenser().condense_structure(structure))


REPRESENTATIONS: Mapping[str, Callable[[Structure], str]] = {
    function.__name__: function
    for function in (
        composition,
        cif_p1,
        cif_symmetrized,
        crystal_text_llm,
        atom_sequences,
        atom_sequences_plusplus,
        zmatrix,
        local_env,
        robocrys_rep,
    )
}


def represent(structure: Structure, representation: str, where: str = "structure") -> str:
    """Return the text of a crystal in one of ``REPRESENTATIONS``.

    Raises ConfigError for an unknown representation, StructureError (beginning with ``where``) for
    a crystal with partly occupied sites or one that the representation cannot express.
    """
    if representation not in REPRESENTATIONS:
        names = ", ".join(REPRESENTATIONS)
        raise ConfigError(f"representation {representation!r}: expected one of {names}")
    if not structure.is_ordered:
        raise StructureError(
            f"{where}: has sites with partial occupancy, which no representation can write; order "
            "it first, for example with pymatgen's OrderDisorderedStructureTransformation"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No Pauling electronegativity")
            warnings.filterwarnings("ignore", message="Set OLD_ERROR_HANDLING")  # of spglib
            return REPRESENTATIONS[representation](structure)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise StructureError(f"{where}: cannot be written as {representation}: {reason}") from error


# Changes of a crystal that change its text, and, but for the last one, not its energy.


def permute(structure: Structure, generator: np.random.Generator) -> Structure:
    """Return the same crystal with its sites in a random order."""
    order = generator.permutation(len(structure))
    return Structure.from_sites([structure[int(site)] for site in order])


def translate(structure: Structure, generator: np.random.Generator) -> Structure:
    """Return the same crystal, all its atoms shifted by one random vector of the cell."""
    moved = structure.copy()
    moved.translate_sites(list(range(len(structure))), generator.random(3))
    return moved


def perturb(structure: Structure, generator: np.random.Generator, distance: float) -> Structure:
    """Return another crystal: every atom moves by up to ``distance`` Å, in any direction."""
    direction = generator.standard_normal((len(structure), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    moves = direction * distance * generator.random((len(structure), 1))
    return Structure(
        structure.lattice,
        structure.species,
        structure.cart_coords + moves,
        coords_are_cartesian=True,
    )


_ELEMENTS = [element.symbol for element in Element]
_CIF_WORDS = (
    "_symmetry_space_group_name_H-M", "_cell_length_a", "_cell_length_b", "_cell_length_c",
    "_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma", "_symmetry_Int_Tables_number",
    "_chemical_formula_structural", "_chemical_formula_sum", "_cell_volume",
    "_cell_formula_units_Z", "_symmetry_equiv_pos_site_id", "_symmetry_equiv_pos_as_xyz",
    "_atom_site_type_symbol", "_atom_site_label", "_atom_site_symmetry_multiplicity",
    "_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z", "_atom_site_occupancy",
    "loop_", "data_",
)  # fmt: skip
_SINGLE = "abcdefghijklmnopqrstuvwxyzADEGIJLMQRTXZ0123456789.-+/,:;'\"()[]{}=*#_\nÅ°"
_PLACES = range(-4, 8)  # powers of ten with a token of their own
_PLACE_VALUES = [f"_{digit}_{power}_" for power in _PLACES for digit in range(10)]
PAD, UNKNOWN = "[PAD]", "[UNK]"
VOCABULARY = (PAD, UNKNOWN, "[CLS]", *_CIF_WORDS, *dict.fromkeys((*_ELEMENTS, *_SINGLE)), "_._",
              *_PLACE_VALUES)  # fmt: skip
_TOKEN_IDS = {token: number for number, token in enumerate(VOCABULARY)}
SYMBOLS = "|".join(sorted(_ELEMENTS, key=len, reverse=True))  # a regular expression
# An element symbol is no part of a word: "Co" of "Co3O4", not of "Corner".
_SYMBOL = f"(?:{SYMBOLS})(?![a-z])"
_TOKEN = re.compile("|".join([*map(re.escape, _CIF_WORDS), _SYMBOL, r"\n", r"\S"]))
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def place_values(number: str) -> list[str]:
    """Return a number as digits with powers of ten: 0.93 is ``_0_0_ _._ _9_-1_ _3_-2_``.

    Born and Manica, "Regression Transformer", Nature Machine Intelligence 5, 432 (2023).
    """
    whole, _, decimals = number.partition(".")
    tokens = [f"_{digit}_{len(whole) - 1 - n}_" for n, digit in enumerate(whole)]
    if decimals:
        tokens += ["_._", *(f"_{digit}_{-1 - n}_" for n, digit in enumerate(decimals))]
    return tokens


def tokens(text: str, numbers: str = "digits") -> list[str]:
    """Return the tokens of a representation: CIF keys, elements, line ends, characters.

    ``numbers``: "digits", or "place_values" for digits that carry their power of ten.
    """
    if numbers == "digits":
        return _TOKEN.findall(text)
    parts, end = [], 0
    for number in _NUMBER.finditer(text):
        parts += _TOKEN.findall(text[end : number.start()])
        parts += place_values(number.group())
        end = number.end()
    return parts + _TOKEN.findall(text[end:])


def token_ids(text: str, numbers: str = "digits") -> list[int]:
    """Return the indices in ``VOCABULARY`` of [CLS] and the tokens of a text."""
    unknown = _TOKEN_IDS[UNKNOWN]
    return [_TOKEN_IDS["[CLS]"], *(_TOKEN_IDS.get(t, unknown) for t in tokens(text, numbers))]
