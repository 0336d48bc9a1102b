"""Symmetry operations of crystals: from x,y,z triplets, and by the names of space groups.

The names are those of the 530 settings of the International Tables that spglib knows, each in its
full and short form, with the old symbols (``C m c a`` for ``C m c e``, ``F m 3 m`` for
``F m -3 m``) and the endings that databases use for origins and axes (``:2``, ``Z``, ``:H``).
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np
import spglib

GRAIN = 5040  # translations are whole multiples of 1/5040, which holds every 1/n up to 1/10, 1/48
SETTINGS = range(1, 531)  # spglib's numbers, those of S. R. Hall

_DECIMALS = 48  # a decimal translation as 0.3333 is the nearest multiple of 1/48 ...
_ROUNDED = 0.0041  # ... if it is so near


class SymmetryError(ValueError):
    """Symmetry operations, or the name of a space group, cannot be understood."""


@dataclass(frozen=True)
class Operations:
    """Symmetry operations x -> R x + t/5040 of fractional coordinates (columns).

    Attributes:
        rotations: [n, 3, 3] whole numbers.
        translations: [n, 3] whole numbers from 0 to 5039.
    """

    rotations: np.ndarray
    translations: np.ndarray

    def __len__(self) -> int:
        return len(self.rotations)

    def is_same(self, other: Operations) -> bool:
        """Return whether both are the same operations, in any order."""
        mine = _codes(self.rotations, self.translations)
        return np.array_equal(np.sort(mine), np.sort(_codes(other.rotations, other.translations)))

    def images(self, frac: np.ndarray) -> np.ndarray:
        """Return the images [n, 3] of a position [3]."""
        return self.rotations @ frac + self.translations / GRAIN

    def is_group(self) -> bool:
        """Return whether they are a space group: every product is one of them, up to the lattice.

        A list with a missing operation is none.
        """
        codes = _codes(self.rotations, self.translations)
        products = np.einsum("aij,bjk->abik", self.rotations, self.rotations)
        shifts = np.einsum("aij,bj->abi", self.rotations, self.translations)
        shifts = (shifts + self.translations[:, None]) % GRAIN
        there = np.isin(_codes(products.reshape(-1, 3, 3), shifts.reshape(-1, 3)), codes)
        return bool(there.all()) and len(np.unique(codes)) == len(codes)

    def strain(self, cell: np.ndarray) -> float:
        """Return the largest relative change of a product of lattice vectors under a rotation.

        It is 0 when the cell [3, 3] Å has the symmetry of the group.
        """
        metric = cell @ cell.T
        lengths = np.sqrt(np.diag(metric))
        moved = np.einsum("nji,jk,nkl->nil", self.rotations, metric, self.rotations)
        scale = np.abs(self.rotations).transpose(0, 2, 1) @ lengths  # at most so long
        return float((np.abs(moved - metric) / (scale[:, :, None] * scale[:, None, :])).max())

    @property
    def number(self) -> int:
        """Return the number of the space group type in the International Tables; 0 if unknown."""
        return _number(self.rotations.tobytes(), self.translations.tobytes(), len(self))


def parse_operations(triplets: Iterable[str]) -> Operations:
    """Return the operations of triplets like ``-x, y+1/2, z``, each of them once.

    Raises SymmetryError for one that cannot be read, naming it, and for a list that is no group.
    """
    return _parse_operations(tuple(triplets))


@lru_cache(256)
def _parse_operations(triplets: tuple[str, ...]) -> Operations:
    parsed = dict.fromkeys(map(_parse_operation, triplets))
    rotations = np.array([rotation for rotation, _ in parsed], dtype=np.int64).reshape(-1, 3, 3)
    translations = np.array([translation for _, translation in parsed], dtype=np.int64)
    operations = Operations(rotations, translations)
    if not operations.is_group():
        raise SymmetryError(
            f"the {len(operations)} symmetry operations are no group: one of them is missing or "
            "wrong"
        )
    return operations


def product(first: Operations, second: Operations) -> Operations:
    """Return all products of two lists of operations, each of them once."""
    pairs = itertools.product(range(len(first)), range(len(second)))
    parts = {}
    for a, b in pairs:
        rotation = first.rotations[a] @ second.rotations[b]
        translation = first.rotations[a] @ second.translations[b] + first.translations[a]
        parts[rotation.tobytes(), (translation % GRAIN).tobytes()] = rotation, translation % GRAIN
    rotations, translations = zip(*parts.values(), strict=True)
    return Operations(np.array(rotations), np.array(translations))


_DASH = re.compile("[\N{MINUS SIGN}\N{EN DASH}]")
_TERM = re.compile(r"([+-]?)(?:(\d*\.\d+|\d+\.|\d+(?:/\d+)?)\*?)?([xyz]?)")


@lru_cache(4096)
def _parse_operation(triplet: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts = "".join(_DASH.sub("-", triplet).lower().split()).split(",")
    try:
        if len(parts) != 3:
            raise SymmetryError
        rows, shifts = zip(*map(_parse_row, parts), strict=True)
        if abs(round(float(np.linalg.det(np.array(rows))))) != 1:
            raise SymmetryError
    except (SymmetryError, ZeroDivisionError):
        raise SymmetryError(
            f"{triplet.strip()[:60]!r} is no symmetry operation; expected one like '-x, y+1/2, z'"
        ) from None
    return sum(rows, ()), shifts


def _parse_row(text: str) -> tuple[tuple[int, int, int], int]:
    """Return the row of the rotation, and the translation, of a part like ``-y+1/2``."""
    row, shift, start = [0, 0, 0], Fraction(0), 0
    while start < len(text):
        match = _TERM.match(text, start)
        if match is None or match.end() == start or (start and not match[1]):
            raise SymmetryError
        sign, number, letter = match.groups()
        if not number and not letter:
            raise SymmetryError
        value = Fraction(number or 1) * (-1 if sign == "-" else 1)
        if letter and value.denominator == 1:
            row["xyz".index(letter)] += int(value)
        elif letter:
            raise SymmetryError
        else:
            shift += value if "/" in number else _from_decimals(value)
        start = match.end()
    return (row[0], row[1], row[2]), round(shift * GRAIN) % GRAIN


def _from_decimals(value: Fraction) -> Fraction:
    exact = Fraction(round(value * _DECIMALS), _DECIMALS)
    return exact if abs(value - exact) < _ROUNDED else value


def _codes(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Return a whole number for each operation, different for different ones."""
    digits = (rotations.reshape(len(rotations), 9) + 3) % 7  # entries from -3 to 3
    linear = digits @ 7 ** np.arange(9)
    return linear * GRAIN**3 + translations % GRAIN @ GRAIN ** np.arange(3)


@lru_cache(256)
def _number(rotations: bytes, translations: bytes, count: int) -> int:
    shape = np.frombuffer(rotations, np.int64).reshape(count, 3, 3).astype(np.int32)
    shifts = np.frombuffer(translations, np.int64).reshape(count, 3) / GRAIN
    group = _spglib("get_spacegroup_type_from_symmetry", shape, shifts)
    return group.number if group is not None else 0


def _spglib(function: str, *arguments: Any) -> Any:
    """Return what spglib returns; None instead of its error."""
    with warnings.catch_warnings():  # it announces that None will become an exception
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return getattr(spglib, function)(*arguments)
        except spglib.SpglibError:
            return None


# --- The 530 settings ---


@dataclass(frozen=True)
class Setting:
    """One of the 530 settings of the space groups.

    Attributes:
        hall: spglib's number of it.
        number: of the space group type, from 1 to 230.
        name: the full symbol with its setting, as ``F d -3 m :2``.
        choice: of origin or axes: "", "1", "2", "H", "R", "b1", "cab", ...
    """

    hall: int
    number: int
    name: str
    choice: str

    @property
    def operations(self) -> Operations:
        """Return its operations."""
        return _operations(self.hall)


@cache
def _operations(hall: int) -> Operations:
    table = _spglib("get_symmetry_from_database", hall)
    shifts = np.rint(table["translations"] * GRAIN).astype(np.int64)
    return Operations(table["rotations"].astype(np.int64), shifts % GRAIN)


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings, in spglib's order."""
    found = []
    for hall in SETTINGS:
        group = _spglib("get_spacegroup_type", hall)
        symbols, choice = group.international.split("="), group.choice
        name = symbols[len(symbols) > 1].strip().replace("_", "")
        shown = f"{name} :{choice[0]}" if choice[:1] in ("1", "2", "H", "R") else name
        found.append(Setting(hall, group.number, shown, choice))
    return tuple(found)


def by_hall(symbol: str) -> Setting | None:
    """Return the setting of a Hall symbol; None when it is not among the 530."""
    return _by_hall().get(_plain_hall(symbol))


@cache
def _by_hall() -> dict[str, Setting]:
    symbols = [_spglib("get_spacegroup_type", hall).hall_symbol for hall in SETTINGS]
    return dict(zip(map(_plain_hall, symbols), settings(), strict=True))


def _plain_hall(symbol: str) -> str:
    return " ".join(symbol.replace("_", " ").replace('"', "=").lower().split())


def by_number(number: int) -> list[Setting]:
    """Return the standard settings of a space group type: one, or one per origin or axes.

    Of a monoclinic type, those with the first choice of the cell for each unique axis.
    """
    group = [setting for setting in settings() if setting.number == number]
    if 3 <= number <= 15:
        return [s for s in group if s.choice in ("a", "b", "c", "a1", "b1", "c1")]
    return [s for s in group if s.choice in ("", "1", "2", "H", "R")]


def by_symbol(symbol: str) -> list[Setting]:
    """Return all settings that a Hermann-Mauguin symbol may mean; [] when nothing has this name."""
    name, choice = _split_choice(symbol)
    spaced = _plain(name)
    found = _by_symbol()[0].get(spaced) or _by_symbol()[1].get(spaced.replace(" ", "")) or []
    return [setting for setting in found if _has_choice(setting, choice)]


_QUOTES = " '\"\u2018\u2019\u201c\u201d"  # typographic ones, too


def _split_choice(symbol: str) -> tuple[str, str]:
    """Return a symbol without the ending for origin or axes, and "", "1", "2", "H", "R", "b1"..."""
    text = re.sub(r"\s*\(?\s*(#|\b[Nn]o\b\.?)\s*\d+\s*\)?\s*$", "", symbol.strip(_QUOTES))
    text = " ".join(text.replace("_", " ").split()) if ":" in text else text
    match = re.fullmatch(r"(.*?)\s*:\s*[oO]?(-?\w+)", text) or re.fullmatch(
        r"(.*?)\s*\(?\s*(?:origin|choice)(?:\s+choice)?\s*([12])\)?", text, re.IGNORECASE
    )
    if match is None and text[:1] in "HRhr" and re.match(r"[Rr]\W*-?3", text):
        axes = r"(.*?)\s*(?:\(?(h)exagonal.*|\(?(r)hombohedral.*|([hr]))"
        match = re.fullmatch(axes, text, re.IGNORECASE)
    if match is None:
        match = re.fullmatch(r"(.*?)\s*([SZ])", text)
    name, choice = filter(None, match.groups()) if match else (text, "")
    choice = {"S": "1", "Z": "2"}.get(choice.upper(), choice)
    choice = choice.upper() if choice.lower() in ("h", "r") else choice
    if match is None and re.match(r"[Hh]\W*-?3", name):  # the Protein Data Bank's H 3
        return "R" + name[1:], "H"
    return name, choice


def _has_choice(setting: Setting, choice: str) -> bool:
    if choice in ("1", "2"):
        return setting.choice[:1] == choice
    return choice in ("", setting.choice)


def _plain(symbol: str) -> str:
    """Return a symbol in lower case, with single spaces, without the marks of typesetting."""
    text = re.sub(r"<sub>|</sub>|[_(){}\\$]", "", _DASH.sub("-", symbol.lower()))
    text = re.sub(r"(?<=[a-z]) ?/ ?|(?<=\d) ?/ ?", "/", text)
    return " ".join(text.split())


@cache
def _by_symbol() -> tuple[dict[str, list[Setting]], dict[str, list[Setting]]]:
    """Return the settings by symbol with spaces, and without."""
    spaced: dict[str, list[Setting]] = {}
    joined: dict[str, list[Setting]] = {}
    for setting in settings():
        for name in _names(setting):
            for table, key in ((spaced, name), (joined, name.replace(" ", ""))):
                if setting not in table.setdefault(key, []):
                    table[key].append(setting)
    return spaced, joined


def _names(setting: Setting) -> set[str]:
    group = _spglib("get_spacegroup_type", setting.hall)
    symbols = group.international.split("=")  # of several, the first is that of the type
    names = {_plain(name) for name in (*(symbols[1:] or symbols), group.international_full)}
    if 3 <= setting.number <= 15:  # P 1 21/c 1 is P 21/c
        names |= {" ".join(part for part in name.split() if part != "1") for name in names}
    for name in list(names):
        names |= set(_old_names(name, setting))
    return names


_IN_PLANE = ("bc", "ca", "ab")  # glide directions in planes normal to a, b and c
# Symbols of these types with an e name two settings, of other origins; only the old letter tells.
E_NAMES_TWO = (67, 68)
_OLD_LETTER = {"": "a", "a-cb": "a", "ba-c": "b", "cab": "b", "bca": "c", "-cba": "c"}


def _old_names(name: str, setting: Setting) -> Iterable[str]:
    """Yield the symbols that the International Tables used for a group before."""
    if setting.number >= 195:
        yield re.sub(r"(?<= [a-z]) -3(?= |$)", " 3", name)  # F m 3 m, I a 3
    parts: Sequence[str] = name.split()
    glides = [index for index, part in enumerate(parts) if part[-1:] == "e"]
    letters = [_IN_PLANE[index - 1] for index in glides]
    if setting.number in E_NAMES_TWO:
        letters = [_OLD_LETTER[setting.choice.lstrip("12")]] * len(glides)
    for chosen in itertools.product(*letters) if glides else ():
        new = list(parts)
        for index, letter in zip(glides, chosen, strict=True):
            new[index] = new[index][:-1] + letter
        yield " ".join(new)
