"""VASP's POSCAR and CONTCAR, the heads of CHGCAR and LOCPOT, and the frames of XDATCAR.

Our own reader, because that of pymatgen (2026.10) scales Cartesian coordinates wrongly when the
scale is a volume, drops atoms when there are fewer numbers than symbols, and takes elements from a
POTCAR that lies beside. Of what VASP itself ignores, this refuses what may hide a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np

from matattn.structures.formats.atoms import (
    NUMBERS,
    Atoms,
    checked_cell,
    label_remarks,
    read_element,
)
from matattn.structures.formats.record import Record
from matattn.text_files import parse_number, read_lines

_COMMENT = re.compile(r"[!#].*")
_SUFFIX = re.compile(r"(_[A-Za-z0-9_]+)?(/\w*)?$")  # of a pseudopotential: Fe_pv, Fe_sv_GW/1a2b3c
_LONGEST_LABEL = 100  # characters
_FLAG = re.compile(r"\.?(T|TRUE|F|FALSE)\.?", re.IGNORECASE)


class _Lines:
    """Lines with a number, and one of them to look at before it is taken."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.number = 0  # of the line that was taken last
        self._next = next(lines, None)

    @property
    def next(self) -> str | None:
        """The next line, without its comment; None at the end."""
        return None if self._next is None else _COMMENT.sub("", self._next)

    def skip_blank(self) -> bool:
        """Go to the next line that is not blank; return False at the end."""
        while self._next is not None and not self._next.strip():
            self.take("a line")
        return self._next is not None

    def take(self, what: str) -> str:
        """Return the next line whole; ValueError, naming what it should be, at the end."""
        if self._next is None:
            raise ValueError(f"ends before {what}")
        line, self._next = self._next, next(self._lines, None)
        self.number += 1
        return line

    def words(self, what: str) -> list[str]:
        return _COMMENT.sub("", self.take(what)).split()

    def skip_to_head(self, atoms: int) -> bool:
        """Go to the title of the next structure; return False, where there is none.

        Velocities and VASP's other numbers may be before it, at most 4 lines for each atom.
        """
        rest = [] if self._next is None else [self._next]
        rest += islice(self._lines, 4 * atoms + 20)
        start = next((at for at in range(len(rest)) if _is_head(rest[at : at + 6])), None)
        if start is None:
            return False
        self.number += start
        self._next, self._lines = rest[start], chain(rest[start + 1 :], self._lines)
        return True

    def error(self, problem: str) -> ValueError:
        return ValueError(f"line {self.number}: {problem}")


def parse(path: Path) -> Iterator[Record]:
    """Yield the structure of a POSCAR, or of another file that begins like one.

    Several that were written one after the other, as by USPEX, are all there.
    """
    lines = _Lines(read_lines(path))
    place = str(path)
    while True:
        head = _head(lines)
        yield "", place, _atoms(lines, *head).structure()
        if not lines.skip_to_head(sum(count for _, count in head[-1])):
            return
        place = f"{path}, line {lines.number + 1}"


def parse_frames(path: Path) -> Iterator[Record]:
    """Yield the frames of an XDATCAR, which repeats its head when the cell changes."""
    lines = _Lines(read_lines(path))
    head = _head(lines)
    number = 0
    while lines.skip_blank():
        if not (lines.next or "").strip().lower().startswith("direct"):
            head = _head(lines)
            lines.skip_blank()
        number += 1
        place = f"{path}, frame {number}"
        yield "", place, _atoms(lines, *head).structure()


def _is_head(lines: Sequence[str]) -> bool:
    """Return whether lines are title, scale, three vectors, and symbols or whole numbers."""
    words = [_COMMENT.sub("", line).split() for line in lines[1:]]
    if len(words) < 5 or len(words[0]) != 1 or not words[4]:
        return False
    numbers = [*words[0], *(word for row in words[1:4] for word in row)]
    if len(numbers) != 10 or None in map(_number, numbers):
        return False
    return words[4][0].isdecimal() or words[4][0][0].isalpha()


_Groups = list[tuple[str, int]]  # symbols as the file writes them ("" in VASP 4), and numbers


def _head(lines: _Lines) -> tuple[str, np.ndarray, np.ndarray, _Groups]:
    title = lines.take("the title")
    scale = _numbers(lines, "the scale", (1, 3))
    rows = [_numbers(lines, f"lattice vector {n}", (3,)) for n in (1, 2, 3)]
    cell = checked_cell(rows)
    factors = _factors(scale, cell)
    return title, cell * factors, factors, _groups(lines)


def _numbers(lines: _Lines, what: str, counts: Sequence[int]) -> list[float]:
    """Return the numbers at the start of a line; words may follow them, but no further number."""
    words = lines.words(what)
    numbers = []
    for word in words:
        if (number := _number(word)) is None:
            break
        numbers.append(number)
    if len(numbers) not in counts:
        stop = words[len(numbers)] if len(words) > len(numbers) else None
        expected = " or ".join(map(str, counts))
        problem = f"has {len(numbers)} numbers; expected {expected}"
        if stop is not None and len(numbers) < max(counts):
            problem = f"{stop[:40]!r} is not a number; expected {expected}"
        raise lines.error(f"{what}: {problem}")
    return numbers


def _number(word: str) -> float | None:
    """Return a number, also with Fortran's exponent: 1.0D0."""
    if (number := parse_number(word)) is not None:
        return number
    return parse_number(re.sub("(?<=[0-9.])[dD](?=[+-]?[0-9])", "e", word))


def _factors(scale: Sequence[float], cell: np.ndarray) -> np.ndarray:
    """Return the factors [3] of x, y and z; one negative scale is the volume of the cell, Å^3."""
    if len(scale) == 1 and scale[0] < 0:
        return np.full(3, np.cbrt(-scale[0] / abs(np.linalg.det(cell))))
    if min(scale) <= 0:
        raise ValueError(f"line 2: the scale is {' '.join(map(str, scale))}; expected factors "
                         "above 0, or one negative number, the volume")  # fmt: skip
    return np.broadcast_to(np.array(scale), (3,))


def _groups(lines: _Lines) -> _Groups:
    """Read the symbols and the numbers of atoms; VASP wraps both over several lines."""
    symbols: list[str] = []
    while lines.next and lines.next.split() and not lines.next.split()[0].isdecimal():
        if lines.next.split()[0][0] in "+-.0123456789":
            lines.take("the numbers of atoms")
            raise lines.error("expected symbols of elements or whole numbers of atoms")
        line = lines.words("the symbols of elements")
        try:
            symbols += [word for word in line if _symbol(word)]
        except ValueError as error:
            raise lines.error(str(error)) from None
    counts = _whole_numbers(lines)
    while len(counts) < len(symbols) and all(w.isdecimal() for w in (lines.next or "x").split()):
        counts += _whole_numbers(lines)
    if symbols and len(symbols) != len(counts):
        found = f"{' '.join(symbols)[:60]}; {' '.join(map(str, counts))[:60]}"
        raise lines.error(f"{_count(symbols, 'symbol')}, {_count(counts, 'number')}: {found}")
    if not sum(counts):
        raise lines.error("declares no atoms")
    return list(zip(symbols or repeat(""), counts, strict=False))


def _whole_numbers(lines: _Lines) -> list[int]:
    words = lines.words("the numbers of atoms")
    numbers = [word for word in words if word.isdecimal()]
    rest = words[len(numbers) :]
    if not numbers or words[: len(numbers)] != numbers or any(_number(w) is not None for w in rest):
        raise lines.error(f"expected whole numbers of atoms, got {' '.join(words)[:40]!r}")
    return [int(number) for number in numbers]


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _atoms(
    lines: _Lines, title: str, cell: np.ndarray, scale: np.ndarray, groups: _Groups
) -> Atoms:
    """Read the lines from the mode on."""
    selective = bool(lines.next and lines.next.strip()[:1] in ("s", "S"))
    if selective:
        lines.take("Selective dynamics")
    cartesian = _is_cartesian(lines)
    total = sum(count for _, count in groups)
    coords, labels = _coordinates(lines, total, selective)
    symbols, remarks, doubts = _elements(groups, labels, title)
    pos = coords * scale if cartesian else coords @ cell
    if not cartesian and _are_lengths(coords, cell):
        doubts = (*doubts, "Direct coordinates above 1.5 that lie in the cell if they are in Å")
    return Atoms([NUMBERS[symbol] for symbol in symbols], pos, cell, remarks, doubts)


def _are_lengths(coords: np.ndarray, cell: np.ndarray) -> bool:
    """Return whether Direct coordinates are far out of the cell, and in it if taken for Å."""
    inside = coords @ np.linalg.inv(cell)
    return bool(coords.max() > 1.5 and inside.min() > -0.01 and inside.max() < 1.01)


def _is_cartesian(lines: _Lines) -> bool:
    word = lines.take("Direct or Cartesian").strip()
    if word[:1].lower() not in ("d", "c", "k"):
        raise lines.error(f"expected Direct or Cartesian, got {word[:40]!r}")
    return word[0].lower() != "d"


def _coordinates(lines: _Lines, total: int, selective: bool) -> tuple[np.ndarray, list[str]]:
    """Return the coordinates, and the label at the end of each line, or ""."""
    coords: list[list[float | None]] = []
    labels = []
    while len(coords) < total:
        if not _looks_like_numbers(lines.next):
            found = f"; then {lines.next.strip()[:40]!r}" if lines.next else ""
            raise ValueError(f"declares {total} atoms, and has {len(coords)} coordinates{found}")
        words = lines.take("the coordinates").replace("!", " ! ").replace("#", " # ").split()
        numbers = [_number(word) for word in words[:4]]
        if None in numbers[:3] or len(numbers) < 3:
            bad = next((word for word in words[:3] if _number(word) is None), " ".join(words))
            raise lines.error(f"atom {len(coords) + 1}: {bad[:40]!r} in place of a coordinate")
        if numbers[3:] not in ([], [None]):
            raise lines.error(f"atom {len(coords) + 1}: 4 numbers; expected 3 coordinates")
        coords.append(numbers[:3])
        labels.append(_label(words[3:], selective))
    if _looks_like_numbers(lines.next) and len((lines.next or "").split()) >= 3:
        raise ValueError(f"declares {total} atoms, and has more coordinates")
    return np.array(coords, dtype=np.float64), labels


def _looks_like_numbers(line: str | None) -> bool:
    words = (line or "").split()
    return bool(words) and words[0][0] in "+-.0123456789\N{MINUS SIGN}"


def _label(words: list[str], selective: bool) -> str:
    """Return the label of an atom, which may be a comment; "" of other remarks."""
    if selective or len(words) >= 3 and all(map(_FLAG.fullmatch, words[:3])):
        words = words[3:]  # T T F of selective dynamics, before the label of fluorine
    words = [word for word in words if word not in ("!", "#")]
    return words[0] if len(words) == 1 or len(words) == 2 and words[1].isdecimal() else ""


def _elements(
    groups: _Groups, labels: Sequence[str], title: str
) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Return the symbols of all atoms, and remarks and doubts on them."""
    written = [label for label, _ in groups]
    doubts = []
    if not all(written):  # VASP 4
        if all(labels):
            symbols = [_symbol(label) for label in labels]
            return symbols, ("elements taken from the ends of the coordinate lines",), ()
        written = _from_title(title, len(groups))
        doubts = [f"elements taken from the title, {' '.join(written)}: the file names no others"]
    symbols = [_symbol(label) for label in written]
    changed = [f"{label} as {symbol}" for label, symbol in zip(written, symbols, strict=True)
               if _SUFFIX.sub("", label) != symbol]  # fmt: skip
    counts = [count for _, count in groups]
    atoms = [s for s, count in zip(symbols, counts, strict=True) for _ in range(count)]
    _check_labels(atoms, labels)
    return atoms, tuple(label_remarks(list(dict.fromkeys(changed)))), tuple(doubts)


def _from_title(title: str, groups: int) -> list[str]:
    words = title.split()
    try:
        if len(words) == groups and all(map(_symbol, words)):
            return words
    except ValueError:
        pass
    raise ValueError("has no element symbols (VASP 4); write them in a line above the numbers")


def _symbol(label: str) -> str:
    return read_element(_SUFFIX.sub("", label[:_LONGEST_LABEL]), any_case=True)


def _check_labels(symbols: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse labels of coordinates that name other elements than the symbols do."""
    for number, (symbol, label) in enumerate(zip(symbols, labels, strict=True), start=1):
        try:
            named = _symbol(label) if label[:1].isupper() else symbol
        except ValueError:  # a word
            continue
        if named != symbol:
            raise ValueError(f"atom {number} is {symbol} by the symbols and numbers above, and "
                             f"{label} at the end of its line")  # fmt: skip
