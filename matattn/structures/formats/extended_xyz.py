"""XYZ and extended XYZ: one reader of frames for prediction and for data sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from matattn.structures.formats.atoms import Atoms, is_periodic, make_atoms, read_elements
from matattn.structures.formats.record import AnyStructure, Record, make_record
from matattn.text_files import parse_number, read_lines

_LOST = "the frames from here on cannot be read"
_TWICE = "given twice"
_CELL_KEYS = ("lattice", "cell", "unitcell", "unit_cell", "box", "cell_vectors", "lattice_vectors")
_NUMBER = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?"
_OTHER_CELL = re.compile(  # CELL or %PBC or unitcell with six numbers, or nine numbers alone
    rf"\b(?:cell|unit_?cell|lattice|pbc|cryst1?)\b[\s:\[({{]*{_NUMBER}(?:[\s,]+{_NUMBER}){{5}}"
    rf"|\A{_NUMBER}(?:\s+{_NUMBER}){{8}}\Z",
    re.IGNORECASE | re.ASCII,
)
_ITEM = re.compile(  # key=value, "value", 'value', {value}, [value] or [[1, 0], [0, 1]]
    r"""(?:^|(?<=[\s"'}\]]))([^\s="'{\[]++)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|'([^']*+)'|\{([^}]*+)\}"""
    r"""|(\[[^][]*+(?:\[[^][]*+\][^][]*+)*+\])|(\S*))"""
)
_FLAGS = {word: flag for words, flag in (("T true True TRUE", True), ("F false False FALSE", False))
          for word in words.split()}  # fmt: skip


class Frame(NamedTuple):
    """A frame: its number from 1, its first line, and its atoms, or in their place the problem.

    ``info`` holds the values of the comment line, but for those that describe the atoms.
    """

    number: int
    line: int
    atoms: Atoms | ValueError
    info: Mapping[str, Any]


def parse(path: Path) -> Iterator[Record]:
    """Yield the structures of a file; their ids are those of the comment lines."""
    for frame in read_frames(path):
        place = f"{path}, frame {frame.number}"
        yield make_record(partial(_structure, frame), place, str(frame.info.get("id", "")))


def _structure(frame: Frame) -> AnyStructure:
    if isinstance(frame.atoms, ValueError):
        raise frame.atoms
    return frame.atoms.structure()


def read_frames(path: Path) -> Iterator[Frame]:
    """Yield all frames. A damaged one harms no other, unless its number of atoms is damaged.

    Raises OSError, EOFError or ValueError when the file itself cannot be read.
    """
    lines = enumerate(read_lines(path), start=1)
    number = 0
    start = _next_text(lines)
    while start:
        number += 1
        at, count = start[0], start[1].strip()
        if not _is_count(count):
            problem = f"expected a number of atoms, got {count[:40]!r}; {_LOST}"
            yield Frame(number, at, ValueError(problem), {})
            return
        comment = next(lines, (0, ""))[1].strip()
        rows, start = _rows(lines, int(count))
        if start and len(rows) == int(count) and _is_atom(start[1]):
            problem = f"declares {count} atoms, and has more; {_LOST}"
            yield Frame(number, at, ValueError(problem), {})
            return
        yield _frame(number, at, int(count), comment, rows)


def _next_text(lines: Iterator[tuple[int, str]]) -> tuple[int, str] | None:
    return next((line for line in lines if line[1].strip()), None)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _is_atom(line: str) -> bool:
    words = line.split()
    return len(words) >= 4 and all(parse_number(word) is not None for word in words[1:4])


def _rows(lines: Iterator[tuple[int, str]], count: int) -> tuple[list[str], tuple[int, str] | None]:
    """Return the lines of the atoms, and the line that begins the next frame.

    A number alone in its line, which is no atom, begins the next frame of one with too few atoms.
    """
    rows: list[str] = []
    for at, line in lines:
        if len(rows) == count:
            return rows, (at, line) if line.strip() else _next_text(lines)
        if _is_count(line.strip()):
            return rows, (at, line)
        rows.append(line)
    return rows, None


def _frame(number: int, at: int, count: int, comment: str, rows: Sequence[str]) -> Frame:
    info = _parse_comment(comment)
    try:
        rows = [row for row in rows if row.strip()]
        if len(rows) < count:
            raise ValueError(f"declares {count} atoms, and has {len(rows)}")
        if "Lattice" not in info and _OTHER_CELL.search(comment):
            raise ValueError(
                'the comment line tells a cell; write it as Lattice="...", nine numbers'
            )
        return Frame(number, at, _read_atoms(info, rows), info)
    except ValueError as error:
        return Frame(number, at, error, info)


def _parse_comment(comment: str) -> dict[str, Any]:
    """Return numbers, flags, lists of them, and texts; ids stay texts: 007."""
    info: dict[str, Any] = {}
    for key, *values in _ITEM.findall(comment):
        text = next((value for value in values if value), "")
        text = f"{_TWICE}: {text}" if key in info and key == "Lattice" else text
        info[key] = text if key == "id" or key.lower() == "properties" else _value(text)
    return info


def _value(text: str) -> Any:
    words = re.findall(r"[^\s,\[\]]+", text)
    for convert in (parse_number, _FLAGS.get):
        values = [convert(word) for word in words]
        if values and None not in values:
            return values if len(values) > 1 else values[0]
    return text


def _read_atoms(info: dict[str, Any], rows: Sequence[str]) -> Atoms:
    """Return the atoms, and take out of ``info`` what describes them."""
    lattice, pbc = info.pop("Lattice", None), _take(info, "pbc")
    columns = _read_columns(_take(info, "properties"))
    cell = _cell(lattice, info)
    periodic = is_periodic(_flags(pbc)) if pbc is not None else cell is not None
    if periodic and cell is None:
        raise ValueError('is periodic, and has no Lattice="...", nine numbers')
    z, remarks, pos = _read_rows(rows, columns)
    return make_atoms(z, pos, cell, periodic, remarks)


def _take(info: dict[str, Any], name: str) -> Any:
    """Take a value out of the comment line, whose keys are written in several cases."""
    return next((info.pop(key) for key in list(info) if key.lower() == name), None)


def _cell(lattice: Any, info: Mapping[str, Any]) -> np.ndarray | None:
    if lattice is None:
        for key, value in info.items():
            if key.lower() in _CELL_KEYS and np.size(value) in (3, 6, 9):
                raise ValueError(f'has {key}=; write it as Lattice="...", nine numbers')
        return None
    if str(lattice).startswith(_TWICE):
        raise ValueError(f"has a Lattice {_TWICE}; leave one")
    numbers = np.asarray(lattice)
    if numbers.dtype != np.float64 or numbers.size != 9:
        raise ValueError("has a Lattice that is not nine numbers")
    return numbers.reshape(3, 3)


def _flags(pbc: Any) -> Any:
    """Return the flags of a comment line, which may be written as 1 and 0."""
    flags = np.asarray(pbc)
    return flags != 0 if flags.dtype.kind == "f" and np.isin(flags, (0, 1)).all() else pbc


class _Columns(NamedTuple):
    """Where the columns of a frame begin; ``total`` is None where the file does not tell it."""

    species: int | None
    z: int | None
    pos: int
    total: int | None


def _read_columns(properties: str | None) -> _Columns:
    if properties is None:
        return _Columns(0, None, 1, None)
    fields = properties.split(":")
    starts: dict[str, int] = {}
    total = 0
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if kind not in ("R", "I", "S", "L") or not _is_count(width):
            break
        starts[name] = total
        starts[f"{name}:{kind}:{width}"] = total
        total += int(width)
    else:
        if len(fields) % 3 == 0:
            return _checked(properties, starts, total)
    raise ValueError(f"Properties={properties[:60]}: expected name:type:columns, with the "
                     "types S, R, I or L")  # fmt: skip


def _checked(properties: str, starts: dict[str, int], total: int) -> _Columns:
    if "pos:R:3" not in starts:
        raise ValueError(f"Properties={properties[:60]} has no pos:R:3, the positions in Å")
    species, z = starts.get("species:S:1"), starts.get("Z:I:1")
    if species is None and z is None:
        raise ValueError(f"Properties={properties[:60]} has no species:S:1, the elements")
    return _Columns(species, z, starts["pos:R:3"], total)


def _read_rows(
    rows: Sequence[str], columns: _Columns
) -> tuple[list[int], list[str], list[list[float]]]:
    """Return atomic numbers, remarks on them, and positions, Å."""
    labels: list[str] = []
    numbers: list[str] = []
    pos = []
    for number, row in enumerate(rows, start=1):
        words = row.split()
        _check_width(number, words, columns)
        if columns.species is not None:
            labels.append(words[columns.species])
        if columns.z is not None:
            numbers.append(words[columns.z])
        pos.append(_position(number, words[columns.pos : columns.pos + 3]))
    z, remarks = read_elements(labels) if labels else (_atomic_numbers(numbers), [])
    if labels and numbers and z != _atomic_numbers(numbers):
        raise ValueError("the columns species and Z name different elements")
    return z, remarks, pos


def _check_width(number: int, words: Sequence[str], columns: _Columns) -> None:
    least = 4 if columns.total is None else columns.total
    if len(words) < least or columns.total is not None and len(words) > least:
        raise ValueError(f"atom {number} has {len(words)} columns; expected {least}")


def _position(number: int, words: Sequence[str]) -> list[float]:
    position = []
    for word in words:
        if (value := parse_number(word)) is None:
            raise ValueError(f"atom {number} has the coordinate {word[:40]!r}, which is no number")
        position.append(value)
    return position


def _atomic_numbers(words: Sequence[str]) -> list[int]:
    for number, word in enumerate(words, start=1):
        if not _is_count(word):
            raise ValueError(f"atom {number} has Z {word[:40]!r}, which is no atomic number")
    return [int(word) for word in words]
