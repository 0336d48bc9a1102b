"""The atoms that a block of a CIF lists: their elements, coordinates and occupancies.

The element of an atom is that of its type symbol. A label alone often is none: T1 is a tetrahedral
place and no tritium, HOH is water and no holmium, CA may be calcium or a carbon. A dubious label is
read only where the formula of the file bears it out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matattn.errors import StructureError
from matattn.structures.formats.atoms import NUMBERS, SYMBOLS
from matattn.structures.formats.cif_syntax import NULL, Block
from matattn.structures.formats.occupancy import round_occupancy
from matattn.structures.structure import MAX_ATOMIC_NUMBER
from matattn.text_files import parse_number

_IN_CRYSTALS = set(SYMBOLS[1 : MAX_ATOMIC_NUMBER + 1])  # NO and CN are no No and Cn
MOST_PLACES = 200_000  # sites, and sites times operations
_REFINED = 1.01  # an occupancy above 1 that a refinement did not hold
_MOLECULES = {"CO", "HO", "PO", "HF"}  # as type symbols: carbonyl, hydroxyl ... or an element
_WITH_HYDROGEN = {"OH", "OW", "OD"}  # labels of oxygen with hydrogens that have no place


class Notes:
    """What was assumed while a block was read, and why the crystal may be a wrong one."""

    def __init__(self) -> None:
        self._remarks: dict[str, list[str]] = {}
        self._doubts: dict[str, list[str]] = {}

    def remark(self, text: str, who: str = "") -> None:
        """Note an assumption that is surely right, about an atom or about all."""
        self._remarks.setdefault(text, []).append(who)

    def doubt(self, text: str, who: str = "") -> None:
        """Note why the crystal may be a wrong one."""
        self._doubts.setdefault(text, []).append(who)

    def add(self, other: Notes) -> None:
        """Add all notes of another list."""
        for texts, more in ((self._remarks, other._remarks), (self._doubts, other._doubts)):
            for text, names in more.items():
                texts.setdefault(text, []).extend(names)

    @property
    def remarks(self) -> list[str]:
        """Return a line for each kind of remark, with the atoms that it is about."""
        return [_line(*item) for item in self._remarks.items()]

    @property
    def doubts(self) -> list[str]:
        """Return a line for each kind of doubt, with the atoms that it is about."""
        return [_line(*item) for item in self._doubts.items()]


def _line(text: str, names: list[str]) -> str:
    names = [name for name in dict.fromkeys(names) if name]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{text}: {', '.join(names[:3])}{more}" if names else text


@dataclass(frozen=True)
class Site:
    """An atom of the asymmetric unit.

    Attributes:
        label: its name in the file.
        element: its symbol; that of deuterium is H.
        occupancy: 1, or less.
        frac: [3] fractional coordinates.
        rounding: [3] the value of the last digit of each coordinate; 0 if it is exact.
        multiplicity: how many places the file says it has; None if it does not.
    """

    label: str
    element: str
    occupancy: float
    frac: np.ndarray
    rounding: np.ndarray
    multiplicity: int | None


def read_cell(block: Block) -> tuple[float, float, float, float, float, float]:
    """Return lengths (Å) and angles (degrees); StructureError for one that is missing."""
    tags = [f"_cell_length_{axis}" for axis in "abc"]
    tags += [f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")]
    values = []
    for tag in tags:
        text = block.value(tag)
        if text is None:
            raise StructureError(f"has no {tag}")
        values.append(read_number(text, tag)[0])
    a, b, c, alpha, beta, gamma = values
    return a, b, c, alpha, beta, gamma


def read_formula(block: Block) -> dict[str, float]:
    """Return the number of each element in the formula of the file; {} if it tells nothing."""
    text = block.value("_chemical_formula_sum", "_chemical_formula_moiety") or ""
    text = text.replace(",", " ")
    if not re.fullmatch(r"(\s*[A-Z][a-z]?\s*(\d+\.?\d*|\.\d+)?)+\s*", text):
        return {}
    counts: dict[str, float] = {}
    for symbol, number in re.findall(r"([A-Z][a-z]?)\s*(\d+\.?\d*|\.\d+)?", text):
        symbol = "H" if symbol == "D" else symbol
        counts[symbol] = counts.get(symbol, 0) + float(number or 1)
    return counts if counts.keys() <= NUMBERS.keys() else {}


def read_number(text: str, name: str) -> tuple[float, float, float]:
    """Return a number, its own standard uncertainty, and the value of its last digit.

    4.594(2) has an uncertainty of 0.002; 4.594 has 0; of a fraction as 1/3 the last digit is 0.
    Raises StructureError, naming ``name``, for what is no number.
    """
    match = re.fullmatch(r"\s*([^()]*?)\s*(?:\((\d+)\))?\s*", text)
    body, error = match.groups() if match else ("", None)
    value = parse_number(body)
    if value is None and (parts := re.fullmatch(r"(-?\d+)/([1-9]\d*)", body)):
        return int(parts[1]) / int(parts[2]), 0.0, 0.0
    if value is None or not math.isfinite(value):
        what = "missing" if text in NULL else f"{text[:40]!r}, not a number"
        raise StructureError(f"{name} is {what}")
    mantissa, _, power = body.lower().partition("e")
    _, point, digits = mantissa.partition(".")
    unit = 10.0 ** (int(power or 0) - len(digits)) if point else 0.0
    return value, int(error) * unit if error else 0.0, unit


def read_sites(
    block: Block, cell: np.ndarray, formula: Mapping[str, float], notes: Notes
) -> list[Site]:
    """Return the atoms of a block; ``cell`` [3, 3] Å is for Cartesian coordinates.

    Left out, with a remark, are dummy atoms and places without an occupant. Raises StructureError
    for labels that are no elements, hydrogens without a place, disorder, and missing coordinates.
    """
    table = _Table(block)
    sites = []
    for row in range(len(table)):
        label = table.label(row)
        flag = table.text("_atom_site_calc_flag", row).lower()
        if flag.startswith("dum"):
            notes.remark("dummy atoms left out", label)
            continue
        occupancy = _occupancy(table.text("_atom_site_occupancy", row), label, notes)
        if occupancy == 0:
            notes.remark("atoms with an occupancy of 0 left out", label)
            continue
        _check_attached(table.text("_atom_site_attached_hydrogens", row), label)
        element = _element(label, table.text("_atom_site_type_symbol", row), formula, notes)
        frac, rounding = table.position(row, label, cell, notes)
        sites.append(Site(label, element, occupancy, frac, rounding, table.multiplicity(row)))
    if not sites:
        raise StructureError("has no atoms")
    _check_disorder(table)
    _check_labels(sites, notes)
    return sites


class _Table:
    """The loop of atoms of a block, by row."""

    def __init__(self, block: Block) -> None:
        self.block = block
        labels = block.column("_atom_site_label", "_atom_site_label_atom_id", "_atom_site_id")
        types = block.column("_atom_site_type_symbol")
        self.labels = labels or types or []
        fractional = block.column("_atom_site_fract_x") is not None
        self.kind = "fract" if fractional else "cartn"
        self.tags = [f"_atom_site_{self.kind}_{axis}" for axis in "xyz"]
        if not self.labels:
            raise StructureError("has no atoms: _atom_site_label is missing")
        if len(self.labels) > MOST_PLACES:
            raise StructureError(
                f"{len(self.labels)} atoms, more than {MOST_PLACES}; write so large a cell as "
                "POSCAR or extended XYZ"
            )
        if any(tag not in block for tag in self.tags):
            missing = next(tag for tag in self.tags if tag not in block)
            missing = missing if fractional else "_atom_site_fract_x"
            raise StructureError(f"has no coordinates of atoms: {missing} is missing")
        models = set(block.column("_atom_site_pdbx_pdb_model_num") or ())
        if len(models) > 1:
            raise StructureError(f"holds {len(models)} models of one crystal; leave one")

    def __len__(self) -> int:
        return len(self.labels)

    def text(self, tag: str, row: int) -> str:
        """Return an entry, "" where there is none; "." and "?" stay what they are."""
        column = self.block.column(tag)
        if column is None:
            return ""
        if len(column) != len(self):
            raise StructureError(
                f"{tag} has {len(column)} values for {len(self)} atoms; expected one loop"
            )
        return column[row]

    def label(self, row: int) -> str:
        label = self.labels[row]
        return f"atom {row + 1}" if label in NULL else label

    def position(
        self, row: int, label: str, cell: np.ndarray, notes: Notes
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return fractional coordinates [3] and the value of their last digits [3]."""
        read = [read_number(self.text(tag, row), f"{label}: {tag}") for tag in self.tags]
        values, _, units = (np.array(column) for column in zip(*read, strict=True))
        if self.kind == "fract":
            return values, units
        notes.remark("Cartesian coordinates")
        inverse, origin = _to_fractional(self.block, cell)
        return inverse @ values + origin, np.abs(inverse) @ units

    def multiplicity(self, row: int) -> int | None:
        names = ("_atom_site_site_symmetry_multiplicity", "_atom_site_symmetry_multiplicity")
        for name in names:
            text = self.text(name, row)
            if text.isdecimal():
                return int(text)
        return None


def _to_fractional(block: Block, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return M [3, 3] and v [3] of fractional coordinates M x + v (columns).

    They are those of the file, else those of the axes that nearly all files have: a along x, and b
    in the plane of x and y. Raises StructureError for axes that are only described.
    """
    for names in (
        "_atom_sites_fract_transf_matrix[{}][{}] _atom_sites_fract_transf_vector[{}]",  # mmCIF
        "_atom_sites_fract_tran_matrix_{}{} _atom_sites_fract_tran_vector_{}",
    ):
        matrix, vector = names.split()
        if matrix.format(1, 1) in block:
            return _numbers(block, matrix, (3, 3)), _numbers(block, vector, (3,))
    axes = (block.value("_atom_sites_cartn_transform_axes") or "").lower()
    if axes and not re.search(r"(^|[^a-z])a\s*(along|\|\||parallel)\W*(to )?x", axes):
        raise StructureError(
            f"has Cartesian coordinates in axes of its own ({axes[:40]}); write _atom_site_fract_x,"
            " y and z"
        )
    return np.linalg.inv(np.linalg.cholesky(cell @ cell.T).T), np.zeros(3)


def _numbers(block: Block, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers of the tags ``name`` with the indices of a matrix or vector."""
    values = np.zeros(shape)
    for index in np.ndindex(shape):
        tag = name.format(*(number + 1 for number in index))
        values[index] = read_number(block.value(tag) or "?", tag)[0]
    return values


def _occupancy(text: str, label: str, notes: Notes) -> float:
    if text in NULL:
        if text == "?":
            notes.remark("unknown occupancy taken as 1", label)
        return 1.0
    value, error, _ = read_number(text, f"{label}: _atom_site_occupancy")
    if round_occupancy(value, error) == 1 or 1 < value <= _REFINED:
        if value != 1:
            notes.remark("occupancy taken as 1", f"{label} ({text})")
        return 1.0
    if not 0 <= value <= 1:
        raise StructureError(f"{label} has an occupancy of {text}; expected 0 to 1")
    return value


def _check_attached(text: str, label: str) -> None:
    if text in NULL:
        return
    count, _, _ = read_number(text, f"{label}: _atom_site_attached_hydrogens")
    if count:
        raise StructureError(
            f"{label} has {count:g} attached hydrogens, and the file gives them no place; add them"
        )


def _check_disorder(table: _Table) -> None:
    """Refuse atoms of several groups of disorder, each of which is there only sometimes."""
    groups = {table.text("_atom_site_disorder_group", row) for row in range(len(table))}
    if len(groups - set(NULL)) > 1:
        raise StructureError(
            "is disordered: _atom_site_disorder_group names alternatives; keep one of them"
        )


def _check_labels(sites: Sequence[Site], notes: Notes) -> None:
    """Doubt labels that name another one of the elements than their type symbols."""
    elements = {site.element for site in sites}
    for site in sites:
        if (named := _named(site.label)) in elements and named != site.element:
            notes.doubt("labels and type symbols are different elements",
                        f"{site.label} ({site.element})")  # fmt: skip


def _named(label: str) -> str | None:
    """Return the element that a label surely names: Ti of Ti1 and TiA, none of TI1."""
    match = re.match(r"[A-Z][a-z](?![a-z])|[A-Z](?![A-Za-z])", label)
    return match[0] if match and match[0] in NUMBERS else None


def _element(label: str, type_symbol: str, formula: Mapping[str, float], notes: Notes) -> str:
    """Return the symbol of an atom's element; StructureError when it cannot be known."""
    if type_symbol not in NULL:
        return _from_type(type_symbol, label, formula, notes)
    return _from_label(label, formula, notes)


_TYPE = re.compile(r"(?:\d{1,3})?([A-Za-z]+?)(?:va?l?)?(?:[\d.]*[+-]?|[+-][\d.]*)")


def _from_type(text: str, label: str, formula: Mapping[str, float], notes: Notes) -> str:
    match = _TYPE.fullmatch(text)
    letters = match[1] if match else ""
    if letters.upper() == "D":
        notes.remark("deuterium taken as H", label)
        return "H"
    if letters in NUMBERS:
        return letters
    symbol = letters.capitalize()
    if symbol not in _IN_CRYSTALS or re.search(r"[A-Z]{2}\d+$", text):  # PO4 is no polonium
        raise StructureError(
            f"{label}: the type symbol {text!r} is no element; write one atom for each atom"
        )
    if letters.upper() in _MOLECULES and symbol not in formula:
        notes.doubt(f"type symbol {text} taken as {symbol}", label)
    return symbol


def _from_label(label: str, formula: Mapping[str, float], notes: Notes) -> str:
    is_mixed = re.search(r"[/,]|\d\.\d", label)  # Al/Si1, Al0.5Si0.5
    match = None if is_mixed else re.match(r"[A-Za-z]+", label)
    letters = match[0] if match else ""
    if letters == "D":
        notes.remark("deuterium taken as H", label)
        return "H"
    if certain := _named(letters):
        return certain
    candidates = [c for c in dict.fromkeys((letters[:2].capitalize(), letters[:1].upper()))
                  if c in _IN_CRYSTALS]  # fmt: skip
    borne_out = [candidate for candidate in candidates if candidate in formula]
    if len(borne_out) == 1:
        notes.remark("labels taken as elements of the formula", f"{label} ({borne_out[0]})")
        return borne_out[0]
    of_one_case = letters in (letters.upper(), letters.lower())  # SI, si, but not Cg
    may_be_told = len(letters) <= 2 and of_one_case and letters.upper() not in _WITH_HYDROGEN
    if candidates and not formula and may_be_told:
        notes.doubt("labels without type symbols taken as elements", f"{label} ({candidates[0]})")
        return candidates[0]
    raise StructureError(
        f"the label {label!r} is no element; add the column _atom_site_type_symbol"
    )
