"""Crystal structures: read from files, check, and turn into tensors.

Cartesian positions in Å; the rows of ``cell`` are the lattice vectors; positions are wrapped into
the cell before anything else happens.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import DummySpecies, Structure

from matattn.errors import StructureError
from matattn.neighbors import periodic_neighbors

if TYPE_CHECKING:
    import torch
    from torch_geometric.data import Data

MAX_ATOMIC_NUMBER = 98
_OVERLAP = 0.01  # Å: two atoms on one place, an error
_CLOSE = 0.5  # Å: suspicious, a warning
_DENSEST = 1.0  # Å^3 per atom: diamond has 5.7, hydrogen at 5 megabars about 1.5


def read(path: str | Path) -> list[Structure | StructureError]:
    """All structures of a CIF, POSCAR, extended-XYZ or pymatgen-JSON file.

    An entry of a file of several that cannot be read stands as a StructureError in its place.
    Raises StructureError, naming the file, when the file cannot be read or holds no structure.
    """
    path = Path(path)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        try:
            if path.is_dir():
                raise StructureError(f"{path}: is a folder without structure files")
            if path.stat().st_size == 0:
                raise StructureError(f"{path}: the file is empty")
            structures = _parse(path)
        except StructureError:
            raise
        except FileNotFoundError:
            raise StructureError(f"{path}: no such file") from None
        except Exception as error:  # parsers raise whatever they like on damaged files
            reasons = [str(error) or type(error).__name__, *(str(r.message) for r in remarks)]
            reason = " ".join("; ".join(dict.fromkeys(reasons)).split())
            raise StructureError(f"{path}: cannot be read as {_kind(path)}: {reason}") from error
    if any("Elements in POSCAR cannot be determined" in str(r.message) for r in remarks):
        raise StructureError(
            f"{path}: has no element symbols (VASP 4); write them in a line above the numbers"
        )
    if not structures:
        raise StructureError(f"{path}: holds no structure")
    return structures


def is_structure_file(path: Path) -> bool:
    """Whether the name of a file is one that ``read`` knows."""
    try:
        return not path.is_dir() and bool(_kind(path))
    except StructureError:
        return False


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith((".cif", ".mcif")):
        return "CIF"
    if name.endswith((".xyz", ".extxyz")):
        return "extended XYZ"
    if name.endswith(".json"):
        return "pymatgen JSON"
    if name.startswith(("poscar", "contcar")) or name.endswith((".vasp", ".poscar")):
        return "POSCAR"
    raise StructureError(
        f"{path}: unknown file type; expected .cif, .vasp, POSCAR*, CONTCAR*, .extxyz or .json"
    )


def _parse(path: Path) -> list[Structure | StructureError]:
    kind = _kind(path)
    if kind == "CIF":
        from pymatgen.io.cif import CifParser

        # An occupancy a little over 1 is rounding; one below 1 is kept, for validate().
        parser = CifParser(path, occupancy_tolerance=1.01)
        return list(parser.parse_structures(primitive=False, check_occu=True))
    if kind == "POSCAR":
        return [Structure.from_file(path)]
    if kind == "pymatgen JSON":
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list):
            return [_from_json(content)]
        return [_or_error(_from_json, entry, f"{path}, entry {n}") for n, entry in _number(content)]
    frames = parse_extxyz(path.read_text(encoding="utf-8"), str(path))
    return [_or_error(_from_atoms, atoms, f"{path}, frame {n}") for n, atoms in _number(frames)]


def _number(entries: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    return enumerate(entries, start=1)


def _or_error(
    convert: Callable[[Any], Structure], entry: Any, where: str
) -> Structure | StructureError:
    try:
        return convert(entry)
    except Exception as error:  # whatever a damaged entry makes pymatgen raise
        return StructureError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}")


def _from_json(entry: dict[str, Any]) -> Structure:
    """A structure from pymatgen's dictionary: lattice, species and coordinates, nothing else.

    ``Structure.from_dict`` also decodes properties, and imports the modules that they name.
    """
    entry = entry.get("structure", entry)
    sites = entry["sites"]
    species = [
        {str(kind["element"]): float(kind["occu"]) for kind in site["species"]} for site in sites
    ]
    return Structure(entry["lattice"]["matrix"], species, [site["abc"] for site in sites])


def parse_extxyz(text: str, where: str) -> Any:
    """The frames of an extended XYZ file as ASE ``Atoms``."""
    try:
        from ase.io import read as ase_read
    except ModuleNotFoundError:
        raise StructureError(
            f"{where}: extended XYZ needs ASE: pip install 'matattn[data]'"
        ) from None
    return ase_read(io.StringIO(text), index=":", format="extxyz")


def _from_atoms(atoms: Any) -> Structure:
    if not atoms.pbc.all():
        raise ValueError('not periodic in all directions (give Lattice="...")')
    return Structure(atoms.cell.array, atoms.numbers, atoms.positions, coords_are_cartesian=True)


def validate(structure: Structure, where: str = "structure") -> list[str]:
    """Check that a structure is a physical crystal of whole, known atoms.

    Returns warnings (atoms closer than 0.5 Å). Raises StructureError, beginning with ``where`` and
    naming the site, for partial occupancy, unknown elements, and all that ``validate_arrays``
    refuses.
    """
    for index, site in enumerate(structure):
        name = f"site {index + 1} ({site.species_string})"
        if not site.is_ordered:
            raise StructureError(
                f"{where}: {name} has partial occupancy; order it first, for example with "
                "pymatgen's OrderDisorderedStructureTransformation"
            )
        if isinstance(site.specie, DummySpecies):
            raise StructureError(f"{where}: {name} is not a chemical element")
    z = [site.specie.Z for site in structure]
    return validate_arrays(z, structure.frac_coords, structure.lattice.matrix, where)


def validate_arrays(z: Sequence[int], frac: Any, cell: Any, where: str) -> list[str]:
    """As ``validate``, from atomic numbers [N], fractional coordinates [N, 3] and cell [3, 3] Å.

    Raises StructureError for: no atoms, wrong shapes, NaN or infinite numbers, a cell without
    volume, elements beyond Z = 98, and atoms closer than 0.01 Å.
    """
    try:
        given = np.asarray(z)
        numbers = given.astype(np.int64)
        frac, cell = np.asarray(frac, dtype=np.float64), np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError):
        raise StructureError(f"{where}: atoms, coordinates or lattice are not numbers") from None
    if numbers.size == 0:
        raise StructureError(f"{where}: no atoms")
    if given.dtype.kind not in "iuf" or (given != numbers).any():
        raise StructureError(f"{where}: atomic numbers must be whole numbers")
    if frac.shape != (numbers.size, 3) or cell.shape != (3, 3) or numbers.ndim != 1:
        raise StructureError(
            f"{where}: expected {numbers.size} x 3 coordinates and a 3 x 3 lattice, got shapes "
            f"{frac.shape} and {cell.shape}"
        )
    if not np.isfinite(cell).all():
        raise StructureError(f"{where}: a lattice vector is NaN or infinite")
    if (bad := np.flatnonzero(~np.isfinite(frac).all(axis=1))).size:
        raise StructureError(f"{where}: site {bad[0] + 1} has a NaN or infinite coordinate")
    volume = abs(float(np.linalg.det(cell)))
    if volume < _DENSEST * numbers.size:
        raise StructureError(
            f"{where}: the cell has a volume of {volume:.3g} Å^3 for {numbers.size} atoms; is a "
            "lattice vector missing, or the lattice not in Å?"
        )
    if (bad := np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))).size:
        raise StructureError(
            f"{where}: site {bad[0] + 1} has atomic number {numbers[bad[0]]}; the networks know 1 "
            f"to {MAX_ATOMIC_NUMBER}"
        )
    return _check_distances(frac, cell, where)


def _check_distances(frac: np.ndarray, cell: np.ndarray, where: str) -> list[str]:
    i, j, _, distance = periodic_neighbors(frac @ cell, cell, _CLOSE)
    other = np.flatnonzero(distance > 1e-8)  # not the atom itself ...
    same_place = np.flatnonzero((distance <= 1e-8) & (i != j))  # ... but another one on top of it
    closest = same_place if same_place.size else other[np.argsort(distance[other])]
    if closest.size == 0:
        return []
    first, second, d = i[closest[0]], j[closest[0]], distance[closest[0]]
    pair = f"sites {min(first, second) + 1} and {max(first, second) + 1}"
    if first == second:
        pair = f"site {first + 1} and its periodic image"
    if d < _OVERLAP:
        raise StructureError(f"{where}: {pair} overlap ({d:.3g} Å apart)")
    return [f"{pair} are only {d:.2f} Å apart"]


def to_tensors(structure: Structure, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """z [N], pos [N, 3] Å (wrapped) and cell [1, 3, 3] Å of a structure."""
    z = [site.specie.Z for site in structure]
    return tensors_from_arrays(z, structure.frac_coords, structure.lattice.matrix, dtype)


def tensors_from_arrays(
    z: Sequence[int] | np.ndarray, frac: Any, cell: Any, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """As ``to_tensors``, from atomic numbers [N], fractional coordinates [N, 3], cell [3, 3] Å."""
    import torch

    cell = np.array(cell, dtype=np.float64)  # a copy: PyTorch wants memory that may be written
    frac = np.asarray(frac, dtype=np.float64)
    frac = frac - np.floor(frac)
    return {
        "z": torch.as_tensor(np.asarray(z), dtype=torch.long),
        "pos": torch.as_tensor(frac @ cell, dtype=dtype or torch.get_default_dtype()),
        "cell": torch.as_tensor(cell, dtype=dtype or torch.get_default_dtype())[None],
    }


def to_data(tensors: dict[str, Any], y: Sequence[float] = (), id: str = "") -> Data:
    """A torch_geometric ``Data`` with z, pos, cell, y [1, T] (NaN = no label) and id."""
    import torch
    from torch_geometric.data import Data

    return Data(**tensors, y=torch.tensor([list(y)], dtype=torch.float32), id=id)
