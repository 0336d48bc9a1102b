"""A corpus of generated CIF files, whose crystals spglib's tables tell independently.

For each of the 530 settings of the space groups, a random crystal is written in every way that the
symmetry can be told, and in formats as users have them. The reader must give this crystal, or say
that something is unclear. A different crystal without a word is an error.
"""

import io
import os
import warnings
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import spglib
from pymatgen.core import Composition, Structure

from matattn.errors import StructureError
from matattn.structures.formats.cif import parse, parse_text
from matattn.structures.remarks import doubts_of

SOME = sorted(np.random.default_rng(0).permutation(np.arange(1, 531))[:200].tolist())
DIGITS = 5
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
ELEMENTS = ("Mg", "Al", "O")


class Crystal:
    """A random crystal of a setting: its asymmetric unit and, by spglib's table, its cell."""

    def __init__(self, hall: int) -> None:
        rng = np.random.default_rng(hall)
        self.hall, self.type = hall, spglib.get_spacegroup_type(hall)
        table = spglib.get_symmetry_from_database(hall)
        self.rotations, self.translations = table["rotations"], table["translations"]
        while True:
            self.sites = [self._place(rng, general) for general in (True, False, False)]
            orbits = [self._orbit(site) for site in self.sites]
            self.z = np.repeat([12, 13, 8], [len(orbit) for orbit in orbits])
            self.frac = np.concatenate(orbits)
            self.cell = self._cell(rng)
            if _closest(self.frac, self.cell) > 0.9:
                break

    def _place(self, rng, general):
        x = rng.random(3).round(DIGITS)
        if general:
            return x
        operation = rng.integers(len(self.rotations))
        matrix, shift = self.rotations[operation], self.translations[operation]
        for _ in range(50):  # onto what the operation leaves where it is, if there is such a place
            image = matrix @ x + shift
            x = x + (image - x - np.rint(image - x)) / 2
        return x % 1

    def _orbit(self, site):
        images = (self.rotations @ site + self.translations) % 1
        kept = []
        for image in images:
            if all(np.abs(image - k - np.rint(image - k)).max() > 1e-3 for k in kept):
                kept.append(image)
        return np.array(kept)

    def _cell(self, rng):
        """Return a random cell with the symmetry of the rotations."""
        raw = np.diag([1.0, 1.15, 1.3]) + 0.25 * rng.standard_normal((3, 3))
        metric = np.mean([r.T @ (raw @ raw.T) @ r for r in self.rotations], axis=0)
        cell = np.linalg.cholesky(metric)
        return cell * (len(self.z) * rng.uniform(12, 25) / np.linalg.det(cell)) ** (1 / 3)

    @property
    def symbol(self):
        symbols = self.type.international.split("=")
        return symbols[len(symbols) > 1].strip().replace("_", "")

    @property
    def ending(self):
        choice = self.type.choice
        return f" :{choice[0]}" if choice[:1] in ("1", "2", "H", "R") and choice else ""

    @property
    def is_standard(self):
        return self.type.choice in ("", "1", "2", "b", "b1", "H", "R")

    @property
    def has_shared_name(self):
        """Two settings are called C m m e, and two C c c e."""
        return self.type.number in (67, 68)

    @property
    def formula(self):
        return " ".join(f"{e}{n}" for e, n in zip(ELEMENTS, self._counts(), strict=True))

    def _counts(self):
        counts = [int((self.z == z).sum()) for z in (12, 13, 8)]
        return [count // np.gcd.reduce(counts) for count in counts]

    @property
    def units(self):
        return len(self.z) // sum(self._counts())


@cache
def crystal(hall: int) -> Crystal:
    return Crystal(hall)


def _closest(frac, cell):
    offsets = frac[:, None] - frac[None]
    offsets -= np.rint(offsets)
    images = np.array(list(product((-1, 0, 1), repeat=3)))
    distances = np.linalg.norm((offsets[:, :, None] + images) @ cell, axis=3)
    distances[np.arange(len(frac)), np.arange(len(frac)), len(images) // 2] = np.inf  # itself
    return distances.min()


# --- Ways to write a crystal ---


def triplet(rotation, translation, style):
    """Return an operation as text: style 0 is x+1/2, 1 is 1/2+X, 2 is x+0.5 with decimals."""
    parts = []
    for row, shift in zip(rotation, translation, strict=True):
        letters = "".join(("-" if c < 0 else "+") + "xyz"[i] for i, c in enumerate(row) if c)
        twelfths = round(shift * 24)
        number = f"{twelfths}/24" if style != 2 else f"{shift:.5f}"
        if not twelfths:
            part = letters.removeprefix("+")
        elif style == 1:
            part = number + letters.upper()
        else:
            part = f"{letters.removeprefix('+')} + {number}"
        parts.append(part)
    return ("," if style == 1 else ", ").join(parts)


def write(c: Crystal, symmetry: list[str], sites: list[str] | None = None, extra: str = "") -> str:
    lengths = np.linalg.norm(c.cell, axis=1)
    unit = c.cell / lengths[:, None]
    angles = np.degrees(np.arccos(np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]],
                                          -1, 1)))  # fmt: skip
    lines = ["data_crystal", extra]
    lines += [f"_cell_length_{a} {v:.6f}" for a, v in zip("abc", lengths, strict=True)]
    lines += [f"_cell_angle_{a} {v:.6f}" for a, v in zip(("alpha", "beta", "gamma"), angles,
                                                         strict=True)]  # fmt: skip
    lines += symmetry
    lines += ["loop_", "_atom_site_label", "_atom_site_type_symbol"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    lines += sites or [
        f"{e}1 {e} {x:.{DIGITS}f} {y:.{DIGITS}f} {z:.{DIGITS}f}"
        for e, (x, y, z) in zip(ELEMENTS, c.sites, strict=True)
    ]
    return "\n".join(lines) + "\n"


def operations(c, style=0, tag="_space_group_symop_operation_xyz"):
    order = np.random.default_rng(c.hall).permutation(len(c.rotations))
    return ["loop_", tag] + [
        f"'{triplet(c.rotations[i], c.translations[i], style)}'" for i in order
    ]


def of_formula(c):
    return [f"_chemical_formula_sum '{c.formula}'", f"_cell_formula_units_Z {c.units}"]


def in_mmcif(c):
    text = write(c, operations(c, tag="_space_group_symop.operation_xyz"))
    for item in ("cell", "atom_site"):
        text = text.replace(f"_{item}_", f"_{item}.")
    return text


def in_cartesian(c):
    """Atoms in ångströms: the cell of ``write`` has a along x and b in the plane of x and y."""
    sites = [
        f"{e}1 {e} {x:.6f} {y:.6f} {z:.6f}"
        for e, (x, y, z) in zip(ELEMENTS, np.array(c.sites) @ c.cell, strict=True)
    ]
    return write(c, operations(c), sites).replace("fract_", "Cartn_")


def in_capitals(c):
    text = write(c, operations(c, tag="_Symmetry_Equiv_Pos_as_xyz"))
    return text.replace("_cell_", "_CELL_").replace("loop_", "LOOP_").replace("data_", "DATA_")


def with_noise(c):
    """Comments, a text field that looks like data, empty values, Windows' ends of lines."""
    extra = "# comment\n_publ_section_comment\n;\ndata_fake\nloop_\n_atom_site_label\nX1\n;\n"
    extra += "_journal_year\n_chemical_name_common 'Müller''s salt'\n_exptl_note it's fine\n"
    text = write(c, operations(c), extra=extra)
    return text.replace("\n", "\r\n")


def with_errors(c):
    """Standard uncertainties in brackets."""
    sites = [
        f"{e}1 {e}2+ {x:.{DIGITS}f}(2) {y:.{DIGITS}f}(1) {z:.{DIGITS}f}(12)"
        for e, (x, y, z) in zip(ELEMENTS, c.sites, strict=True)
    ]
    return write(c, operations(c), sites)


def doubled(c):
    """All atoms of the cell beside the operations that make them."""
    names = {12: "Mg", 13: "Al", 8: "O"}
    sites = [
        f"{names[z]}{n} {names[z]} {x:.7f} {y:.7f} {w:.7f}"
        for n, (z, (x, y, w)) in enumerate(zip(c.z, c.frac, strict=True))
    ]
    return write(c, operations(c), sites)


def whole_cell(c):
    return doubled(c).replace(
        "\n".join(operations(c)), f"_symmetry_space_group_name_H-M '{c.symbol}{c.ending}'\n"
        "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'"
    )  # fmt: skip


def coarse(c):
    """Three digits, as old papers have: thirds and sixths are no special positions any more."""
    sites = [
        f"{e}1 {e} {x:.3f} {y:.3f} {z:.3f}" for e, (x, y, z) in zip(ELEMENTS, c.sites, strict=True)
    ]
    return write(c, [*operations(c), *of_formula(c)], sites)


def symbol(tag, form):
    return lambda c: write(c, [f"{tag} '{form(c)}'"])


KINDS = {
    "operations": lambda c: write(c, operations(c)),
    "operations, 1/2+X": lambda c: write(c, operations(c, 1, "_symmetry_equiv_pos_as_xyz")),
    "operations in decimals": lambda c: write(c, operations(c, 2)),
    "operations and names": lambda c: write(
        c, [*operations(c), f"_space_group_name_H-M_alt '{c.symbol}{c.ending}'",
            f"_space_group_IT_number {c.type.number}",
            f"_space_group_name_Hall '{c.type.hall_symbol}'", *of_formula(c)]),
    "symbol": symbol("_symmetry_space_group_name_H-M", lambda c: c.symbol + c.ending),
    "symbol without spaces": symbol(
        "_space_group_name_H-M_alt", lambda c: c.symbol.replace(" ", "") + c.ending.strip()),
    "symbol without ending": symbol("_space_group_name_H-M_alt", lambda c: c.symbol),
    "short symbol": symbol("_space_group_name_H-M_alt", lambda c: c.type.international_short
                           if c.is_standard else c.symbol.replace(" 1", "")),
    "symbol and formula": lambda c: write(
        c, [f"_space_group_name_H-M_alt '{c.symbol}'", *of_formula(c)]),
    "Hall symbol": symbol("_space_group_name_Hall", lambda c: c.type.hall_symbol),
    "symbol and number": lambda c: write(
        c, [f"_space_group_name_H-M_alt '{c.symbol}{c.ending}'",
            f"_symmetry_Int_Tables_number {c.type.number}"]),
    "unquoted symbol": lambda c: write(
        c, [f"_symmetry_space_group_name_H-M {c.symbol}{c.ending}"]),
    "number": lambda c: write(c, [f"_space_group_IT_number {c.type.number}", *of_formula(c)]),
    "mmCIF": in_mmcif,
    "Cartesian": in_cartesian,
    "capitals": in_capitals,
    "noise": with_noise,
    "uncertainties": with_errors,
    "doubled atoms": doubled,
    "whole cell": whole_cell,
    "coarse": coarse,
}  # fmt: skip
NAMED = {name for name in KINDS if "symbol" in name and "Hall" not in name}
# Kinds that do not tell the setting: refused unless only one setting fits the atoms.
AMBIGUOUS = {"symbol without ending", "short symbol", "symbol and formula", "number", "coarse"}


# Files that contradict themselves.
BROKEN = {
    "missing operation": lambda c: write(c, operations(c)[:-1]),
    "other number": lambda c: write(
        c, [f"_space_group_name_H-M_alt '{c.symbol}{c.ending}'",
            f"_space_group_IT_number {c.type.number % 230 + 1}"]),
    "operations and other number": lambda c: write(
        c, [*operations(c), f"_space_group_IT_number {c.type.number % 230 + 1}"]),
    "operations of P 1": lambda c: write(
        c, [*operations(crystal(1)), f"_space_group_name_H-M_alt '{c.symbol}{c.ending}'"]),
    "unreadable operation": lambda c: write(c, operations(c)[:-1] + ["'x; y; z'"]),
    "unknown symbol": lambda c: write(c, [f"_space_group_name_H-M_alt '{c.symbol} q'"]),
    "hydrogens without a place": lambda c: write(
        c, [*operations(c), f"_chemical_formula_sum 'H4 {c.formula}'"]),
}  # fmt: skip


def is_same(structure, c: Crystal) -> bool:
    """Return whether a structure is the crystal: its atoms within rounding, in any order."""
    if len(structure) != len(c.z) or abs(structure.volume / abs(np.linalg.det(c.cell)) - 1) > 1e-4:
        return False
    z = np.array([site.specie.Z for site in structure])
    offsets = structure.frac_coords[:, None] - c.frac[None]
    offsets -= np.rint(offsets)
    distance = np.linalg.norm(offsets @ c.cell, axis=2)
    distance[z[:, None] != c.z[None]] = np.inf
    allowed = 0.02 + 0.004 * np.linalg.norm(c.cell, axis=1).max()
    return (distance.min(axis=0) < allowed).all() and (distance.min(axis=1) < allowed).all()


def is_untold(kind: str, c: Crystal) -> bool:
    """Return whether a file does not tell the setting, because its name is that of another one."""
    return not c.is_standard and (kind == "number" or (kind in NAMED and c.has_shared_name))


def check(kind: str, halls) -> dict[str, list]:
    """Read the file of this kind of every setting; return settings by what came of them."""
    results: dict[str, list] = {"same": [], "refused": [], "doubted": [], "SILENT": []}
    for hall in halls:
        c = crystal(hall)
        if is_untold(kind, c):
            continue
        ((_, _, structure),) = parse_text(KINDS[kind](c), "x.cif")
        if isinstance(structure, StructureError):
            results["refused"].append((hall, str(structure)))
        elif is_same(structure, c):
            results["same"].append(hall)
        else:
            results["doubted" if doubts_of(structure) else "SILENT"].append(hall)
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_crystal_in_silence(kind):
    results = check(kind, SOME)
    assert not results["SILENT"] and not results["doubted"]
    assert kind in AMBIGUOUS or not results["refused"]


@pytest.mark.parametrize("kind", BROKEN)
def test_contradictions_are_refused(kind):
    for hall in SOME:
        c = crystal(hall)
        if len(c.rotations) < 3 and kind in ("missing operation", "operations of P 1"):
            continue
        ((_, _, structure),) = parse_text(BROKEN[kind](c), "x.cif")
        assert isinstance(structure, StructureError), c.symbol


@pytest.mark.slow
@pytest.mark.share(3)
@pytest.mark.parametrize("kind", KINDS)
def test_no_other_crystal_in_silence_in_any_setting(kind):
    results = check(kind, range(1, 531))
    print(kind, {name: len(halls) for name, halls in results.items()})
    assert not results["SILENT"] and not results["doubted"]
    assert kind in AMBIGUOUS or not results["refused"]


@pytest.mark.slow
def test_ase_reads_the_same_files_the_same():
    """A second reader, where it reads files at all: operations beside the name of the group."""
    from ase.io.cif import read_cif

    for hall in range(1, 531):
        text = KINDS["operations and names"](crystal(hall))
        ((_, _, structure),) = parse_text(text, "x.cif")
        atoms = read_cif(io.StringIO(text), index=0)
        other = Structure(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions())
        assert is_same(structure, crystal(hall)) and is_same(other, crystal(hall))


@pytest.mark.slow
def test_real_files_as_pymatgen_and_ase_read_them():
    """Two other readers that agree are never contradicted in silence."""
    from ase.io.cif import read_cif
    from pymatgen.io.cif import CifParser

    folder = os.environ.get("MATATTN_DATA")
    paths = sorted(Path(folder).rglob("*.cif")) if folder else []
    if not paths:
        pytest.skip("no CIF below MATATTN_DATA")
    for path in paths:
        ours = [structure for _, _, structure in parse(path)]
        if len(ours) != 1 or isinstance(ours[0], StructureError) or doubts_of(ours[0]):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (theirs,) = CifParser(path).parse_structures(primitive=False)
                atoms = read_cif(path, index=0)
        except Exception:  # readers raise anything
            continue
        if theirs.composition == Composition(atoms.get_chemical_formula()):
            assert ours[0].composition == theirs.composition, path
            assert ours[0].volume == pytest.approx(theirs.volume, rel=1e-3), path
