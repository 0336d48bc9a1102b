"""JSON and JSON lines: structures and molecules of pymatgen, rows of data, JARVIS, and ASE.

Takes lattice, species and coordinates only: ``Structure.from_dict`` also decodes properties, and
imports the modules that they name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pymatgen.core import Lattice, Molecule, Structure

from matattn.errors import StructureError
from matattn.structures.formats.atoms import (
    NUMBERS,
    Atoms,
    checked_cell,
    is_periodic,
    label_remarks,
    make_atoms,
    noted,
    read_element,
    read_elements,
)
from matattn.structures.formats.occupancy import occupancy_remark, site_species
from matattn.structures.formats.record import AnyStructure, Record, make_record
from matattn.text_files import read_lines, read_text

Located = tuple[str, str, dict[str, Any] | ValueError]  # id, place, row or what is wrong with it

_EXPECTED = (
    "expected a structure of pymatgen (lattice, sites) or a row of data (id, lattice, Z, frac)"
)
_PARTS = ("structure", "molecule", "atoms", "attributes")  # of an entry; the last of OPTIMADE
_IDS = ("id", "material_id", "jid")  # of rows, of the Materials Project, of JARVIS


def parse(path: Path) -> Iterator[Record]:
    """Yield the structures of a JSON file: one, a list, or a dictionary of them by their ids."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        hint = "; one structure per line: call it .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"it is not JSON, or cut: {error}{hint}") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):  # of a web service
        content = content["data"]
    if isinstance(content, list):
        for number, entry in enumerate(content, start=1):
            yield _record(entry, f"{path}, entry {number}")
    elif _is_collection(content):
        for key, entry in content.items():
            if isinstance(entry, dict):
                name = f"{path.name.split('.')[0]}:{key}" if key.isdecimal() else key
                yield _record(entry, f"{path}, entry {key[:40]}", name)
    else:
        yield _record(content, str(path))


def parse_lines(path: Path) -> Iterator[Record]:
    """Yield the structures of a file of JSON lines."""
    return parse_rows(read_lines(path), str(path))


def parse_rows(lines: Iterable[str], where: str, start: int = 1) -> Iterator[Record]:
    """Yield the structures of JSON lines, the first of which has the number ``start``."""
    for number, line in enumerate(lines, start):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            yield _record(json.loads(line), place)
        except (ValueError, RecursionError) as error:
            yield "", place, StructureError(f"{place}: is not JSON: {error}")


def _is_collection(content: Any) -> bool:
    """Return whether a dictionary holds structures by their ids, as ASE's databases do."""
    return isinstance(content, dict) and any(
        isinstance(entry, dict) and _kind(entry) is not None for entry in content.values()
    ) and _kind(content) is None  # fmt: skip


def _record(entry: Any, place: str, name: str = "") -> Record:
    if isinstance(entry, dict):
        name = next((str(entry[key]) for key in _IDS if entry.get(key) is not None), name)
    return make_record(partial(from_json, entry), place, name)


def _kind(entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any] | None:
    """Return the part of an entry that holds a structure, and its converter; None if none does."""
    for content in (entry, *(entry.get(key) for key in _PARTS)):
        if isinstance(content, dict):
            for keys, convert in _CONVERTERS.items():
                if set(keys) <= content.keys():
                    return content, convert
    return None


def records_of(rows: Iterable[Located]) -> Iterator[Record]:
    """Yield the structures of the rows of a table, or their errors."""
    for name, place, row in rows:
        yield make_record(partial(_of_row, row), place, name)


def _of_row(row: dict[str, Any] | ValueError) -> AnyStructure:
    if isinstance(row, ValueError):
        raise row
    return from_json(row)


def from_json(entry: Any) -> AnyStructure:
    """Return the structure of an entry; ValueError, naming what is missing, if it has none."""
    found = _kind(entry) if isinstance(entry, dict) else None
    if found is None:
        raise ValueError(f"{_EXPECTED}{_missing(entry)}")
    content, convert = found
    return convert(content)


def _missing(entry: Any) -> str:
    """Return what an entry lacks that looks like one of the kinds."""
    if not isinstance(entry, dict):
        return f", got {type(entry).__name__}"
    content = next((entry[key] for key in _PARTS if key in entry), entry)
    if not isinstance(content, dict):
        return f", got {type(content).__name__}"
    known = [keys for keys in _CONVERTERS if content.keys() & set(keys)]
    lacks = [[key for key in keys if key not in content] for keys in known]
    fewest = min(lacks, key=len, default=[])
    return f"; has no {' and no '.join(fewest)}" if fewest else ""


class PymatgenSites(NamedTuple):
    """The sites of pymatgen's dictionary: occupancies by symbol, coordinates, cell, remarks.

    Coordinates are fractional; without a cell (None), of a molecule, Cartesian, Å.
    """

    species: list[dict[str, float]]
    coords: list[Any]
    cell: np.ndarray | None
    remarks: list[str]


def read_sites(content: Mapping[str, Any]) -> PymatgenSites:
    """Return the sites of a ``Structure`` or ``Molecule``; ValueError, naming the bad one."""
    if not isinstance(content.get("sites"), list):
        raise ValueError(f"has no sites; {_EXPECTED}")
    cell = _cell(content["lattice"]) if "lattice" in content else None
    species, coords = [], []
    rounded: dict[str, float] = {}
    changed: dict[str, str] = {}
    for number, site in enumerate(content["sites"], start=1):
        try:
            occupancies, told = _whole_site(site) or site_species(_parts(site, changed))
            species.append(occupancies)
            coords.append(_coordinates(site, cell))
        except (KeyError, ValueError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"site {number}: {reason}") from None
        except (TypeError, AttributeError):
            reason = "expected species, a list of element and occu, and three coordinates"
            raise ValueError(f"site {number}: {reason}") from None
        if told is not None:
            rounded[f"site {number}"] = told
    remarks = label_remarks([f"{label} as {symbol}" for label, symbol in changed.items()])
    if rounded:
        remarks.append(occupancy_remark(rounded))
    return PymatgenSites(species, coords, cell, remarks)


def _whole_site(site: Mapping[str, Any]) -> tuple[dict[str, float], None] | None:
    """Return what ``site_species`` does of the usual site, one element; None of any other."""
    kinds = site["species"]
    if len(kinds) == 1 and kinds[0]["occu"] == 1 and kinds[0]["element"] in NUMBERS:
        return {kinds[0]["element"]: 1.0}, None
    return None


def _parts(site: Mapping[str, Any], changed: dict[str, str]) -> Iterator[tuple[str, float]]:
    for kind in site["species"]:
        label = str(kind["element"])
        if (symbol := read_element(label)) != label:
            changed[label] = symbol
        yield symbol, _number(kind["occu"], "the occupancy")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}, not a number")
    return float(value)


def _coordinates(site: Mapping[str, Any], cell: np.ndarray | None) -> Any:
    key = "abc" if cell is not None and "abc" in site else "xyz"
    if len(site[key]) != 3:
        raise ValueError(f"{key} has {len(site[key])} numbers; expected 3")
    if cell is None or key == "abc":
        return site[key]
    return (np.asarray(site["xyz"], dtype=np.float64) @ np.linalg.inv(cell)).tolist()


def _cell(lattice: Mapping[str, Any]) -> np.ndarray:
    if not isinstance(lattice, dict):
        raise ValueError("the lattice of pymatgen's structure is no dictionary")
    if not is_periodic(lattice.get("pbc", True)):
        raise ValueError("is periodic nowhere (pbc F F F), and has a lattice")
    names = ("a", "b", "c", "alpha", "beta", "gamma")
    absent = [name for name in names if name not in lattice]
    if "matrix" in lattice:
        cell = checked_cell(lattice["matrix"])
        if not absent:
            told = [_number(lattice[name], name) for name in names]
            _check_parameters(told, Lattice(cell).parameters)
        return cell
    if absent:
        raise ValueError(f"the lattice has no matrix, and no {', '.join(absent)}")
    told = [_number(lattice[name], name) for name in names]
    return checked_cell(Lattice.from_parameters(*told).matrix)


def _check_parameters(told: Sequence[float], found: Sequence[float]) -> None:
    """Refuse a lattice whose lengths and angles are not those of its matrix, within 1 %."""
    if not np.allclose(told, found, rtol=0.01):
        shown = (" ".join(f"{number:.4g}" for number in numbers) for numbers in (found, told))
        raise ValueError("the lattice has a matrix of {}, and lengths and angles are {}: they "
                         "contradict".format(*shown))  # fmt: skip


def _from_pymatgen(content: Mapping[str, Any]) -> AnyStructure:
    species, coords, cell, remarks = read_sites(content)
    if cell is None:
        return noted(Molecule(species, coords), remarks)
    return noted(Structure(cell, species, coords), remarks)


def _from_row(content: Mapping[str, Any]) -> AnyStructure:
    if "pbc" in content and not is_periodic(content["pbc"]):
        raise ValueError("is periodic nowhere (pbc F F F): a molecule has Z and pos")
    cell = checked_cell(content["lattice"])
    make_atoms(_whole(content["Z"]), content["frac"], cell, True)  # checks them
    return Structure(cell, content["Z"], content["frac"])


def _whole(numbers: Any) -> list[int]:
    for number, z in enumerate(numbers, start=1):
        if not isinstance(z, Integral) or isinstance(z, bool):
            raise ValueError(f"atom {number}: Z is {z!r}; expected an atomic number")
    return list(numbers)


def _from_molecule_row(content: Mapping[str, Any]) -> AnyStructure:
    if content.get("lattice") is not None:
        raise ValueError("has pos and a lattice; a crystal has frac, and a molecule no lattice")
    return Molecule(content["Z"], content["pos"])


def _from_jarvis(content: Mapping[str, Any]) -> AnyStructure:
    z, remarks = read_elements([str(label) for label in content["elements"]])
    cell = checked_cell(content["lattice_mat"])
    coords = np.asarray(content["coords"], dtype=np.float64)
    pos = coords if content.get("cartesian", False) else coords @ cell
    return make_atoms(z, pos, cell, True, remarks).structure()


def _from_optimade(content: Mapping[str, Any]) -> AnyStructure:
    return atoms_of_optimade(content).structure()


def atoms_of_optimade(content: Mapping[str, Any]) -> Atoms:
    """Return the atoms of the attributes of an entry of OPTIMADE; ValueError if they are none."""
    symbols = {kind["name"]: kind for kind in content.get("species") or ()}
    labels = []
    for number, name in enumerate(content["species_at_sites"], start=1):
        kind = symbols.get(name, {"chemical_symbols": [name], "concentration": [1.0]})
        if len(kind["chemical_symbols"]) != 1 or kind["concentration"] != [1]:
            raise ValueError(f"site {number} ({name}) has partial occupancy; order it first")
        labels.append(str(kind["chemical_symbols"][0]))
    z, remarks = read_elements(labels)
    pbc = [flag == 1 for flag in content.get("dimension_types") or (1, 1, 1)]
    pos, cell = content["cartesian_site_positions"], content["lattice_vectors"]
    return make_atoms(z, pos, cell, pbc, remarks)


def _from_ase(content: Mapping[str, Any]) -> AnyStructure:
    return atoms_of_ase(content).structure()


def atoms_of_ase(content: Mapping[str, Any]) -> Atoms:
    """Return the atoms of a row of ASE's database in JSON; ValueError if they are none."""
    arrays = [_array(content.get(key)) for key in ("numbers", "positions", "cell", "pbc")]
    return make_atoms(*arrays)


def _array(value: Any) -> Any:
    """Decode ASE's arrays, ``{"__ndarray__": [shape, type, numbers]}``."""
    if isinstance(value, dict):
        value = value.get("array", value)  # a cell
    if isinstance(value, dict):
        shape, _, numbers = value["__ndarray__"]
        return np.array(numbers).reshape(shape)
    return value


# The keys by which a structure is known, and what converts it.
_CONVERTERS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], AnyStructure]] = {
    ("lattice", "Z", "frac"): _from_row,
    ("Z", "pos"): _from_molecule_row,
    ("lattice", "sites"): _from_pymatgen,
    ("numbers", "positions", "cell", "pbc"): _from_ase,
    ("lattice_mat", "coords", "elements"): _from_jarvis,
    ("lattice_vectors", "cartesian_site_positions", "species_at_sites"): _from_optimade,
    ("sites",): _from_pymatgen,
}
