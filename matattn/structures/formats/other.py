"""Other formats: XSF, cube, CSSR, vasprun.xml, and files of FHI-aims, LAMMPS, Quantum ESPRESSO.

Readers of our own where those of ASE and pymatgen (2026) assume what a file does not tell: atoms of
labels and types that are no elements, a cell of three directions, Å. Of several steps, the last.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice

from matattn.structures.formats.atoms import (
    SYMBOLS,
    Atoms,
    checked_cell,
    is_periodic,
    label_remarks,
    make_atoms,
    read_element,
    read_elements,
)
from matattn.structures.formats.record import AnyStructure, Parser, Record
from matattn.text_files import decode, open_bytes, parse_number, read_lines, read_text

BOHR = 0.529177210544  # Å, CODATA 2022
_START = 2**16  # bytes that tell what a file is
_LONGEST = 200  # characters of a head line


def _numbers(words: Sequence[str], what: str) -> list[float]:
    numbers = [parse_number(word) for word in words]
    if len(numbers) != 3 or None in numbers:
        raise ValueError(f"{what}: expected three numbers, got {' '.join(words)[:60]!r}")
    return [number for number in numbers if number is not None]


def _whole(words: Sequence[str], what: str) -> int:
    """Return the whole number at the start of a line."""
    if not words or not re.fullmatch(r"[+-]?\d{1,12}", words[0], re.ASCII):
        raise ValueError(f"{what}: expected a whole number, got {' '.join(words)[:60]!r}")
    return int(words[0])


def _last_of(steps: int, name: str = "steps") -> list[str]:
    return [f"the last of {steps} {name}"] if steps > 1 else []


def _one(path: Path, structure: AnyStructure) -> Iterator[Record]:
    yield "", str(path), structure


def _atomic_numbers(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return atomic numbers from themselves, or from symbols; and remarks."""
    if not all(word.isdecimal() for word in words):
        return read_elements(words)
    return [int(word) for word in words], []


def _xsf(path: Path) -> Iterator[Record]:
    """Read the atoms of XCrySDen's format, Å."""
    stripped = (line.partition("#")[0].split() for line in read_lines(path))
    lines = filter(None, stripped)
    periodic: Any = False
    cell, rows, steps = np.zeros((3, 3)), [], 0
    line = next(lines, None)
    while line and not line[0].startswith("BEGIN_BLOCK"):
        word, line = line[0].upper(), None
        if word in _XSF_PERIODIC:
            periodic = _XSF_PERIODIC[word]
        elif word == "PRIMVEC":
            cell = np.array([_numbers(next(lines, []), "PRIMVEC") for _ in range(3)])
        elif word == "PRIMCOORD":
            count = _whole(next(lines, []), "PRIMCOORD")
            rows, steps = list(islice(lines, count)), steps + 1
            line = next(lines, None)
            if len(rows) < count or line and len(line) in _XSF_WIDTHS:
                found = len(rows) if len(rows) < count else "more"
                raise ValueError(f"declares {count} atoms, and has {found}")
        elif word == "ATOMS":
            rows, steps = [], steps + 1
            while (line := next(lines, None)) and len(line) >= 4:
                rows.append(line)
        line = line or next(lines, None)
    if cell.any() and not periodic:
        raise ValueError("has PRIMVEC, and does not say CRYSTAL")
    if wrong := [n for n, row in enumerate(rows, start=1) if len(row) not in _XSF_WIDTHS]:
        raise ValueError(f"atom {wrong[0]}: expected element and three coordinates, or forces, too")
    z, remarks = _atomic_numbers([row[0] for row in rows])
    pos = [_numbers(row[1:4], f"atom {n}") for n, row in enumerate(rows, start=1)]
    atoms = make_atoms(z, pos, cell, periodic, [*remarks, *_last_of(steps)])
    return _one(path, atoms.structure())


_XSF_WIDTHS = (4, 7)  # columns of an atom, without and with forces
_XSF_PERIODIC = {
    "CRYSTAL": (True, True, True), "SLAB": (True, True, False), "POLYMER": (True, False, False),
    "MOLECULE": (False, False, False),
}  # fmt: skip


def _cube(path: Path) -> Iterator[Record]:
    """Read the head of a cube file: Bohr, or Å where the numbers of voxels are negative."""
    title, comment, *head = (line.split() for line in islice(read_lines(path), 6))
    if len(head) < 4:
        raise ValueError("ends before its cell")
    count = abs(_whole(head[0], "number of atoms"))  # negative: of an orbital
    voxels = [_whole(row, "number of voxels") for row in head[1:4]]
    if min(voxels) < 0 < max(voxels):
        raise ValueError("numbers of voxels have two signs: is it in Bohr or in Å?")
    unit = BOHR if max(voxels) > 0 else 1.0
    whole = 1 if "castep2cube" in comment else 0  # its last plane of voxels is the first
    steps = np.array([_numbers(row[1:4], "the cell") for row in head[1:4]])
    cell = (np.abs(voxels) - whole)[:, None] * steps * unit
    rows = [line.split() for line in islice(read_lines(path), 6, 6 + count)]
    if len(rows) < count or any(len(row) != 5 for row in rows):
        raise ValueError(f"declares {count} atoms, and has fewer lines of five numbers")
    z, _ = _atomic_numbers([row[0] for row in rows])
    pos = np.array([_numbers(row[2:], f"atom {n}") for n, row in enumerate(rows, 1)]) * unit
    doubt = "a cube file does not tell whether it is periodic: taken as a crystal, of its grid"
    crystal = make_atoms(z, pos, cell, True)
    return _one(path, Atoms(crystal.z, crystal.pos, crystal.cell, (), (doubt,)).structure())


def _cssr(path: Path) -> Iterator[Record]:
    lines = read_text(path).split("\n")
    if len(lines) < 5:
        raise ValueError("ends before its atoms")
    lengths, angles = (
        [word for word in line.rpartition("=" if "=" in line else "\0")[2].split()][:3]
        for line in (lines[0], re.sub(r"SPGR.*", "", lines[1]))
    )
    group = re.search(r"SPGR\s*=\s*(\d+)", lines[1])
    if group and group[1] != "1":
        raise ValueError(f"has the space group {group[1]}; write all atoms, in P 1")
    if lines[2].split()[1:2] not in ([], ["0"]):
        raise ValueError("has Cartesian coordinates; write fractional ones")
    count = _whole(lines[2].split(), "number of atoms")
    rows = [line.split() for line in lines[4:] if line.strip()]
    if len(rows) != count:
        raise ValueError(f"declares {count} atoms, and has {len(rows)}")
    lattice = Lattice.from_parameters(
        *_numbers(lengths, "a, b, c"), *_numbers(angles, "alpha, beta, gamma")
    )
    if any(len(row) < 5 for row in rows):
        raise ValueError("expected of each atom: number, element and three coordinates")
    z, remarks = read_elements([row[1] for row in rows])
    frac = np.array([_numbers(row[2:5], f"atom {n}") for n, row in enumerate(rows, start=1)])
    atoms = make_atoms(z, frac @ lattice.matrix, lattice.matrix, True, remarks)
    return _one(path, atoms.structure())


def _aims_geometry(path: Path) -> Iterator[Record]:
    return _one(path, _aims_atoms(read_lines(path)).structure())


def _aims_atoms(lines: Iterable[str], remarks: Sequence[str] = ()) -> Atoms:
    """Read FHI-aims' geometry.in, Å; its species are labels that control.in defines."""
    cell, rows = [], []
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["lattice_vector"]:
            cell.append(_numbers(words[1:], "lattice_vector"))
        elif words[:1] in (["atom"], ["atom_frac"]):
            rows.append((words[0] == "atom_frac", words[1:]))
        elif words[:1] in (["empty"], ["pseudocore"], ["multipole"]):
            raise ValueError(f"has {words[0]}, which is no atom")
        elif words and not words[0][0].isalpha():
            raise ValueError(f"expected a keyword in place of {' '.join(words)[:60]!r}")
    if len(cell) not in (0, 3):
        raise ValueError(f"has {len(cell)} lattice vectors; expected 3, or none of a molecule")
    if any(is_frac for is_frac, _ in rows) and not cell:
        raise ValueError("has atom_frac, and no lattice_vector")
    if any(len(words) != 4 for _, words in rows):
        raise ValueError("expected after atom: three coordinates and the species")
    z, labels = read_elements([words[3] for _, words in rows])
    pos = []
    for n, (is_frac, words) in enumerate(rows, start=1):
        coords = np.array(_numbers(words[:3], f"atom {n}"))
        pos.append(coords @ np.array(cell) if is_frac else coords)
    return make_atoms(z, pos, cell or np.zeros((3, 3)), bool(cell), [*labels, *remarks])


def _aims_output(path: Path) -> Iterator[Record]:
    """Read the last geometry of an output, written as geometry.in but for the first one."""
    steps: list[list[str]] = []
    cell: list[str] = []
    inside = False
    for line in read_lines(path):
        text = line.strip()
        if text == "Input geometry:" or steps and _AIMS_STEP.match(text):
            inside = True
            steps.append([])
        elif text.startswith(("Fractional coordinates:", "-----")):
            inside = False
        elif inside and (converted := _aims_line(text)):
            steps[-1].append(converted)
    if not steps:
        raise ValueError("holds no input geometry")
    for step in steps:  # the lattice vectors are not repeated where they stay
        cell = [row for row in step if row.startswith("lattice_vector")] or cell
    atoms = [[row for row in step if row.startswith("atom")] for step in steps]
    if len(atoms[-1]) != len(atoms[0]):
        raise ValueError(f"the last geometry has {len(atoms[-1])} atoms, the first {len(atoms[0])}")
    remarks = _last_of(len(steps), "geometries")
    return _one(path, _aims_atoms(cell + atoms[-1], remarks).structure())


_AIMS_STEP = re.compile(r"(Updated|Final) atomic structure:")


def _aims_line(text: str) -> str | None:
    """Return a line of a geometry in the form of geometry.in; None for any other line."""
    if match := re.fullmatch(r"\|\s+\d+: Species (\S+)\s+(.*)", text):
        return f"atom {match[2]} {match[1]}"
    if match := re.fullmatch(r"\|((\s+-?\d+\.\d+){3})", text):
        return f"lattice_vector {match[1]}"
    return text if text.startswith(("lattice_vector ", "atom ")) else None


def _vasprun(path: Path) -> Iterator[Record]:
    """Read the last structure of VASP's vasprun.xml, line by line: a cut one is no XML."""
    symbols: list[str] = []
    section, steps, complete = "", 0, False
    parts: dict[str, list[list[float]]] = {}
    last: dict[str, list[list[float]]] = {}
    for line in read_lines(path):
        text = line.strip()
        if text.startswith("<v>") and section in ("basis", "positions"):
            words = text.removeprefix("<v>").removesuffix("</v>").split()
            parts.setdefault(section, []).append(_numbers(words, section))
        elif text.startswith("<rc>") and section == "atoms":
            symbols.append(re.sub(r"<rc>\s*<c>\s*(\w*).*", r"\1", text))
        elif match := re.match(r"<v?array name=\"(\w+)\"", text):
            section = match[1]
        elif text.startswith(("</varray", "</array")):
            section = ""
        elif text.startswith("<structure"):
            parts = {}
        elif text == "</structure>":
            last = parts
        elif text.startswith("<calculation"):
            steps += 1
        complete = complete or text == "</modeling>"
    if not last.get("positions") or len(last["positions"]) != len(symbols):
        raise ValueError(
            f"names {len(symbols)} atoms, and has {len(last.get('positions', []))} positions"
        )
    z, remarks = read_elements(symbols)
    cell = checked_cell(last.get("basis", []))
    cut = [] if complete else ["the file ends early: the run was stopped, or goes on"]
    remarks = [*remarks, *_last_of(steps, "ionic steps"), *cut]
    pos = np.array(last["positions"]) @ cell
    return _one(path, make_atoms(z, pos, cell, True, remarks).structure())


def _lammps(path: Path) -> Iterator[Record]:
    """Read a data file of LAMMPS. Elements are those of its masses, or labels of types."""
    lines = read_text(path).split("\n")
    units = re.search(r"units\s*=\s*(\w+)", lines[0])
    if units and units[1] not in ("metal", "real"):
        raise ValueError(f"has the units {units[1]}; expected metal or real (Å)")
    head, sections = _lammps_sections(lines[1:])
    elements = _lammps_elements(sections)
    rows = [line.partition("#")[0].split() for line in sections.get("Atoms", ("", []))[1]]
    at_type, at_pos = _lammps_columns(sections.get("Atoms", ("", []))[0], rows)
    if len(rows) != head.get("atoms", [len(rows)])[0]:
        raise ValueError(f"declares {head['atoms'][0]:g} atoms, and has {len(rows)}")
    widths = (at_pos + 3, at_pos + 6)  # without and with numbers of images
    if wrong := [row[0] for row in rows if len(row) not in widths]:
        raise ValueError(f"atom {wrong[0]}: expected {widths[0]} or {widths[1]} columns")
    if unknown := [row[at_type] for row in rows if row[at_type] not in elements]:
        raise ValueError(f"atoms have the type {unknown[0]}, which has no mass or label")
    z, remarks = read_elements([elements[row[at_type]] for row in rows])
    cell, origin = _lammps_cell(head)
    pos = [_numbers(row[at_pos : at_pos + 3], f"atom {row[0]}") for row in rows]
    remarks.append("LAMMPS data: taken as periodic, with lengths in Å")
    return _one(path, make_atoms(z, np.array(pos) - origin, cell, True, remarks).structure())


_Sections = dict[str, tuple[str, list[str]]]  # the comment after the name, and the lines
_SECTION = re.compile(r"\s*([A-Z][A-Za-z ]*?)\s*(?:#\s*(.*))?")


def _lammps_sections(lines: Sequence[str]) -> tuple[dict[str, list[float]], _Sections]:
    head: dict[str, list[float]] = {}
    sections: _Sections = {}
    current: list[str] | None = None
    for line in lines:
        if len(line) > _LONGEST:
            raise ValueError(f"has a line of {len(line)} characters")
        if match := _SECTION.fullmatch(line):
            current = []
            sections[match[1]] = match[2] or "", current
        elif current is not None:
            if line.strip():
                current.append(line)
        elif match := re.match(r"\s*([-+.\deE\s]+?)\s+([a-z][a-z ]*?)\s*(#.*)?$", line):
            head[match[2]] = [parse_number(word) or 0.0 for word in match[1].split()]
    return head, sections


def _lammps_elements(sections: _Sections) -> dict[str, str]:
    """Return the elements of the types, by their numbers and labels."""
    labels = dict(_pair(line) for line in sections.get("Atom Type Labels", ("", []))[1])
    elements = dict(labels)
    for line in sections.get("Masses", ("", []))[1]:
        values, _, comment = line.partition("#")
        number, mass = _pair(values)
        names = [labels.get(number, ""), *comment.split()[:1]]
        elements[number] = _element_of_mass(number, parse_number(mass) or 0.0, names)
    if not elements:
        raise ValueError("tells no elements; write Masses, with the symbols as comments")
    return elements | {label: elements[number] for number, label in labels.items()}


def _pair(line: str) -> tuple[str, str]:
    words = line.split()
    if len(words) < 2:
        raise ValueError(f"expected a type and its mass or label, got {line.strip()[:60]!r}")
    return words[0], words[1]


def _element_of_mass(number: str, mass: float, names: Sequence[str]) -> str:
    off = {symbol: abs(Element(symbol).atomic_mass - mass) for symbol in SYMBOLS[1:99]}
    for name in filter(None, names):
        try:
            symbol = read_element(name, any_case=True)
        except ValueError:
            continue
        if off[symbol] < 0.6:
            return symbol
    closest = min(off, key=lambda symbol: off[symbol])
    if off[closest] > (0.06 if mass > 2 else 0.006):  # a mass of 1 is also that of LJ units
        raise ValueError(f"type {number} has the mass {mass:g}, which is that of no element; write "
                         "its symbol as a comment")  # fmt: skip
    return closest


_STYLES = {"atomic": (1, 2), "charge": (1, 3), "bond": (2, 3), "angle": (2, 3),
           "molecular": (2, 3), "full": (2, 4)}  # fmt: skip


def _lammps_columns(style: str, rows: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return the columns of the type and of x; they depend on the style."""
    if not rows:
        raise ValueError("has no section Atoms")
    words = style.split()
    if words and words[0] in _STYLES:
        return _STYLES[words[0]]
    width = len(rows[0])
    with_images = width >= 8 and all(re.fullmatch(r"-?\d+", word) for word in rows[0][-3:])
    if width - 3 * with_images == 5 and not words:
        return _STYLES["atomic"]
    raise ValueError(f"atoms of the style {words[0] if words else '(none)'}; write after Atoms "
                     f"one of # {', # '.join(_STYLES)}")  # fmt: skip


def _lammps_cell(head: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    bounds = [head.get(f"{x}lo {x}hi", []) for x in "xyz"]
    if any(len(bound) != 2 for bound in bounds):
        raise ValueError("has no xlo xhi, ylo yhi and zlo zhi")
    low, high = np.array(bounds).T
    cell = np.diag(high - low)
    if "xy xz yz" in head:
        cell[1, 0], cell[2, 0], cell[2, 1] = head["xy xz yz"]
    return cell, low


def _espresso_input(path: Path) -> Iterator[Record]:
    from ase.io.espresso import read_espresso_in

    text = read_text(path)
    _check_ibrav(text)
    remarks = _espresso_labels(
        text, r"^\s*ATOMIC_SPECIES.*\n((?:\s*\S+\s+[-+.\dDdEe]+\s+\S+.*\n)+)"
    )
    try:
        atoms = read_espresso_in(io.StringIO(text))
    except KeyError as error:
        raise ValueError(f"has no {error.args[0]}") from None
    except TypeError:
        raise ValueError(
            "ATOMIC_POSITIONS or CELL_PARAMETERS: expected three decimal numbers in a line, and "
            "lines for nat atoms"
        ) from None
    return _one(path, _from_ase(atoms, remarks))


def _check_ibrav(text: str) -> None:
    """Refuse the cells that pw.x makes of a few numbers, which ASE cannot."""
    ibrav = re.search(r"^[^!\n]*\bibrav\s*=\s*(-?\d+)", text, re.MULTILINE | re.IGNORECASE)
    if ibrav and int(ibrav[1]):
        raise ValueError(f"has ibrav = {ibrav[1]}; write ibrav = 0 and CELL_PARAMETERS, which pw.x "
                         "prints as crystal axes")  # fmt: skip


def _espresso_output(path: Path) -> Iterator[Record]:
    from ase.io.espresso import read_espresso_out

    text = read_text(path)
    remarks = _espresso_labels(
        text, r"^[ \t]*atomic species[ \t]+valence.*\n((?:[ \t]*\S+[ \t]+\d.*\n)+)"
    )
    steps = list(read_espresso_out(io.StringIO(text), index=slice(None)))
    if not steps:
        raise ValueError("holds no finished step")
    return _one(path, _from_ase(steps[-1], [*remarks, *_last_of(len(steps))]))


def _espresso_labels(text: str, table: str) -> list[str]:
    """Check that the labels of species are those of elements; ASE takes W of WAT, O of OH."""
    match = re.search(table, text, re.MULTILINE | re.IGNORECASE)
    if match is None:
        raise ValueError("has no table of its species")
    labels = [line.split()[0] for line in match[1].splitlines() if line.strip()]
    symbols = [read_element(re.sub(r"[_-].*", "", label), any_case=True) for label in labels]
    pairs = zip(labels, symbols, strict=True)
    return label_remarks([f"{label} as {symbol}" for label, symbol in pairs if label != symbol])


def _from_ase(atoms: Any, remarks: Sequence[str]) -> AnyStructure:
    pbc = is_periodic(atoms.pbc)
    z = [int(number) for number in atoms.numbers]
    return make_atoms(z, atoms.positions, np.asarray(atoms.cell), pbc, remarks).structure()


_PWI, _PWO = "an input of Quantum ESPRESSO", "an output of Quantum ESPRESSO"
_GEOMETRY, _AIMS, _DATA = "geometry.in of FHI-aims", "an output of FHI-aims", "data of LAMMPS"
KINDS: dict[str, tuple[str, Parser]] = {
    "vasprun.xml": (r"(.*[-_.])?vasprun([-_.].*)?\.xml", _vasprun),
    "XSF": (r".*\.a?xsf", _xsf),
    "cube": (r".*\.cube?", _cube),
    "CSSR": (r".*\.cssr", _cssr),
    _GEOMETRY: (r"geometry\.in(\.next_step)?", _aims_geometry),
    _PWI: (r".*\.pwi", _espresso_input),
    _PWO: (r".*\.pwo", _espresso_output),
    _AIMS: (r"aims\.out", _aims_output),
    _DATA: (r".*\.(lmp|lammps-data)", _lammps),
}
AMBIGUOUS = r".*\.(in|out|log|data)|data\.[^.]+"  # names that tell little: see ``sniff``
_SIGNS = {
    _AIMS: (r"Invoking FHI-aims",),
    _PWO: (r"Program PWSCF",),
    _PWI: (r"^[ \t]*&(control|system)\b", r"^[ \t]*atomic_positions"),
    _DATA: (r"^[ \t]*\d+[ \t]+atoms[ \t]*$", r"\bxlo[ \t]+xhi\b"),
    _GEOMETRY: (r"\A(?:[ \t]*(?:#.*)?\n)*[ \t]*(lattice_vector|atom|atom_frac)[ \t]+[-+.\d]",),
}


def sniff(path: Path) -> str | None:
    """Return the kind of a file from the lines at its start; None if it is no structure's."""
    if not path.is_file():  # a pipe would wait
        return None
    try:
        with open_bytes(path) as file:
            start = decode(file.read(_START))
    except Exception:  # whatever it is, it is no file of these kinds
        return None
    for kind, signs in _SIGNS.items():
        if all(re.search(sign, start, re.MULTILINE | re.IGNORECASE) for sign in signs):
            return kind
    return None
