"""Crystals from CIF files, read with suspicion.

A file says most things twice: the operations and the name of the space group, the atoms and the
formula, the cell and its volume. Where two of them contradict, the crystal is refused or doubted.
pymatgen's own reader takes P 1 where it cannot read the symmetry, drops atoms whose labels are no
elements, and loses whole blocks; docs/decisions/0054 tells why this one is used instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymatgen.core import Element, Lattice, Structure
from scipy.spatial import KDTree

from matattn.errors import StructureError
from matattn.structures.covalent_radii import covalent_radii
from matattn.structures.formats.atoms import NUMBERS, noted
from matattn.structures.formats.cif_atoms import (
    MOST_PLACES,
    Notes,
    Site,
    read_cell,
    read_formula,
    read_number,
    read_sites,
)
from matattn.structures.formats.cif_symmetry import (
    STRAIN,
    by_number_only,
    check_strain,
    fitting,
    listed_operations,
    named_settings,
)
from matattn.structures.formats.cif_syntax import Block, read_blocks
from matattn.structures.formats.record import Record
from matattn.structures.formats.space_groups import (
    Operations,
    Setting,
    parse_operations,
    settings,
)
from matattn.structures.neighbors import heights, periodic_neighbors
from matattn.structures.structure import CLOSE, ORDER_IT
from matattn.text_files import read_text

_ONE_ATOM = 0.5  # Å: images of one atom so near are that atom, on a special position
_COARSE = 0.2  # Å: farther apart, the coordinates are no rounded special position
_SAME_PLACE = 0.1  # Å between atoms that are one, given twice
_CROWD = 32  # atoms within ``_ONE_ATOM``, itself included; disorder has a few
_SILENT_SHIFT = 0.002  # Å: 0.3333 for 1/3 is no news
_FORMULA = 0.02  # relative deviation from the formula of the file: its numbers are rounded
_VOLUME = 0.02  # relative deviation from the volume of the file
_DENSITY = 0.025  # relative deviation from the density of the file
_DENSITY_UNIT = 1.66053907  # g/cm^3, of one atomic mass unit per Å^3
_ALONE = 1.55  # of it: 2 of 1,235 crystals of the Materials Project have an atom so far from all
_NOBLE_GASES = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")


def parse(path: Path) -> Iterator[Record]:
    """Yield the crystal of each data block that has a cell or atoms, or its error."""
    yield from parse_text(read_text(path), str(path))


def parse_text(text: str, path: str) -> Iterator[Record]:
    """Yield the crystals of the text of a CIF; ``path`` is its name in messages."""
    try:
        blocks = read_blocks(text)
    except StructureError as error:
        yield "", path, StructureError(f"{path}: {error}")
        return
    crystals = [b for b in blocks if b.has("_cell_length") or b.has("_atom_site_")]
    if not crystals:
        yield "", path, StructureError(f"{path}: holds no crystal: no block has a cell or atoms")
    for number, block in enumerate(crystals, start=1):
        place = f"{path}, block {number} (data_{block.name})" if len(crystals) > 1 else path
        try:
            yield "", place, read_crystal(block)
        except StructureError as error:
            yield "", place, StructureError(f"{place}: {error}")


def read_crystal(block: Block) -> Structure:
    """Return the crystal of a block, with what was assumed; StructureError when it is not clear."""
    notes = Notes()
    if block.has("_cell_modulation_dimension") or block.has("_space_group_ssg_name"):
        raise StructureError("is an incommensurately modulated crystal, which has no cell")
    lattice = _lattice(block, notes)
    formula = read_formula(block)
    sites = read_sites(block, lattice.matrix, formula, notes)
    atoms = _fill_cell(block, lattice.matrix, sites, formula, notes)
    _check_formula(atoms, lattice.matrix, formula, block, notes)
    _check_alone(atoms, lattice.matrix, notes)
    structure = Structure(lattice, atoms.elements, atoms.frac, labels=atoms.labels)
    noted(structure, notes.remarks, notes.doubts)
    return structure


def _lattice(block: Block, notes: Notes) -> Lattice:
    parameters = read_cell(block)
    if min(parameters) <= 0 or max(parameters[3:]) >= 180:
        raise StructureError(f"the cell {' '.join(map(str, parameters))} is none")
    with np.errstate(invalid="ignore"):
        lattice = Lattice.from_parameters(*parameters)
    if not np.isfinite(lattice.matrix).all() or lattice.volume < 1e-3:
        raise StructureError(f"the angles {' '.join(map(str, parameters[3:]))} make no cell")
    if text := block.value("_cell_volume"):
        volume, _, _ = read_number(text, "_cell_volume")
        if abs(volume - lattice.volume) > _VOLUME * lattice.volume:
            notes.doubt(f"the file says {volume:g} Å^3; its cell has {lattice.volume:g} Å^3")
    return lattice


# --- From the asymmetric unit to the cell ---


@dataclass(frozen=True)
class Atoms:
    """The atoms of a cell.

    Attributes:
        elements: symbols [N].
        labels: of the file [N].
        frac: [N, 3] fractional coordinates.
    """

    elements: list[str]
    labels: list[str]
    frac: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of atoms of each element."""
        return dict(Counter(self.elements))


def _fill_cell(
    block: Block, cell: np.ndarray, sites: Sequence[Site], formula: Mapping[str, float],
    notes: Notes,
) -> Atoms:  # fmt: skip
    """Return all atoms of the cell by the symmetry that the block tells."""
    listed = listed_operations(block)
    try:
        named = named_settings(block, notes)
    except StructureError:
        if listed is None:
            raise
        named = None  # an unknown name, and operations that do not need it
    if listed is not None:
        check_strain(listed.strain(cell), notes)
        atoms = expand(sites, listed, cell, notes)
        if named is not None:
            _check_name(named, listed, atoms, cell, _confirmed(atoms, cell, formula, block))
            if not any(listed.is_same(setting.operations) for setting in named):
                told = "the operations are not those of the setting"
                _check_others(named, told, atoms, cell, sites, formula, block, notes)
        return atoms
    if named is None:
        atoms = expand(sites, parse_operations(["x,y,z"]), cell, notes)
        note = notes.remark if _is_whole(atoms, cell, formula, block) else notes.doubt
        note("the file tells no symmetry: its atoms were taken as those of the whole cell (P 1)")
        return atoms
    candidates = fitting(named, cell, notes)
    atoms = _decide(candidates, cell, sites, formula, block, notes)
    if by_number_only(block):
        group = [s for s in settings() if s.number == named[0].number and s not in named]
        told = f"only the space group number is told, and {candidates[0].name} was taken, not"
        _check_others(group, told, atoms, cell, sites, formula, block, notes)
    return atoms


def _check_others(
    others: Sequence[Setting], told: str, atoms: Atoms, cell: np.ndarray, sites: Sequence[Site],
    formula: Mapping[str, float], block: Block, notes: Notes,
) -> None:  # fmt: skip
    """Doubt atoms when one of the other settings gives another crystal that may be meant."""
    for setting in others:
        if setting.operations.strain(cell) > STRAIN:
            continue
        try:
            other = expand(sites, setting.operations, cell, Notes())
        except StructureError:
            continue
        may_be = _confirmed(other, cell, formula, block) is not False
        if may_be and _nearest(other, cell).min() > CLOSE and not _is_one_crystal(
            cell, [atoms, other]
        ):  # fmt: skip
            notes.doubt(f"{told} {setting.name}, which gives another crystal")
            return


def _decide(
    candidates: Sequence[Setting], cell: np.ndarray, sites: Sequence[Site],
    formula: Mapping[str, float], block: Block, notes: Notes,
) -> Atoms:  # fmt: skip
    """Return the atoms in the one setting that gives a crystal, and that of the formula if told."""
    crystals: list[tuple[Setting, Atoms, Notes]] = []
    problem: StructureError | None = None
    for setting in candidates:
        own = Notes()
        try:
            crystals.append((setting, expand(sites, setting.operations, cell, own), own))
        except StructureError as error:
            problem = problem or error
    if problem and not crystals:
        raise problem
    fit = [c for c in crystals if _confirmed(c[1], cell, formula, block) is not False] or crystals
    if len(fit) > 1 and not _is_one_crystal(cell, [atoms for _, atoms, _ in fit]):
        names = " or ".join(setting.name for setting, _, _ in fit)
        raise StructureError(
            f"the setting is not told, and gives other crystals: {names}? Write its whole name"
        )
    setting, atoms, own = fit[0]
    if len(candidates) > 1 and len(fit) == 1:
        notes.remark(f"the setting {setting.name} was assumed: no other one fits the atoms")
    notes.add(own)
    return atoms


def _is_one_crystal(cell: np.ndarray, crystals: Sequence[Atoms]) -> bool:
    """Return whether all are the same crystal but for its origin."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(1e-3, 1e-3, 0.01, primitive_cell=False, scale=False)
    first, *others = (Structure(cell, atoms.elements, atoms.frac) for atoms in crystals)
    return all(first.composition == o.composition and matcher.fit(first, o) for o in others)


def _check_name(
    named: Sequence[Setting], listed: Operations, atoms: Atoms, cell: np.ndarray,
    confirmed: bool | None,
) -> None:  # fmt: skip
    """Raise StructureError when the operations are not those of the space group that is named.

    All is well when the atoms have the symmetry of the name by themselves, as where a program
    writes the whole cell, or when formula and Z confirm the atoms.
    """
    numbers = {setting.number for setting in named}
    if listed.number in numbers | {0} or confirmed:
        return
    if len(listed) == 1 and any(_has_symmetry(atoms, s.operations, cell) for s in named):
        return
    raise StructureError(
        f"the file lists {len(listed)} operations, those of space group number {listed.number}, "
        f"and names number {named[0].number} ({named[0].name}): one of them is wrong"
    )


def _has_symmetry(atoms: Atoms, operations: Operations, cell: np.ndarray) -> bool:
    """Return whether every image of an atom is an atom of its element, within 0.1 Å."""
    if len(operations) * len(atoms.frac) > MOST_PLACES:
        return False
    wrapped = atoms.frac % 1 % 1  # twice: -1e-17 % 1 is 1
    images = np.concatenate([operations.images(frac) for frac in wrapped]) % 1 % 1
    _, nearest = KDTree(wrapped, boxsize=1).query(images)
    elements = np.array(atoms.elements)
    distance = np.linalg.norm(_offsets(images, wrapped[nearest]) @ cell, axis=1)
    same = elements[nearest] == np.repeat(elements, len(operations))
    return bool((same & (distance <= _SAME_PLACE)).all())


def expand(sites: Sequence[Site], operations: Operations, cell: np.ndarray, notes: Notes) -> Atoms:
    """Return the atoms of a cell [3, 3] Å from those of the asymmetric unit.

    Raises StructureError for partial occupancy, and for atoms that are nearer than atoms can be.
    """
    if (places := len(sites) * len(operations)) > MOST_PLACES:
        raise StructureError(
            f"{places} places of atoms, more than {MOST_PLACES}; write so large a cell as POSCAR or"
            " extended XYZ"
        )
    sites = _without_images(sites, operations, cell, notes)
    orbits = [_orbit(site, operations, cell, notes) for site in sites]
    kept = _without_doubles(sites, orbits, cell, notes)
    for index in kept:
        site, places = sites[index], len(orbits[index])
        if site.multiplicity not in (None, places):
            notes.doubt(
                "places that are not as many as the file says",
                f"{site.label} ({places}, and {site.multiplicity} in the file)",
            )
    return Atoms(
        [sites[index].element for index in kept for _ in orbits[index]],
        [sites[index].label for index in kept for _ in orbits[index]],
        np.concatenate([orbits[index] for index in kept]),
    )


def _orbit(site: Site, operations: Operations, cell: np.ndarray, notes: Notes) -> np.ndarray:
    """Return the different images [m, 3] of a site, which is moved to its special position."""
    if len(operations) == 1:
        return site.frac[None]
    near = _offsets(operations.images(site.frac), site.frac)
    distance = np.linalg.norm(near @ cell, axis=1)
    fixing = distance < _ONE_ATOM
    frac = site.frac + near[fixing].mean(axis=0)
    images = operations.images(frac)
    images -= np.floor(images + 1e-9)
    _, first = np.unique(np.rint(images * 1e7) % 10**7, axis=0, return_index=True)
    orbit = images[np.sort(first)]
    separation, shift = distance[fixing].max(), float(np.linalg.norm((frac - site.frac) @ cell))
    if len(orbit) * fixing.sum() != len(operations) or separation > _COARSE:
        raise StructureError(
            f"{site.label} is {separation:.2f} Å from an image of itself: is it on a special "
            "position, or is a split place meant?"
        )
    if shift > _SILENT_SHIFT:
        is_rounding = (np.abs(frac - site.frac) <= site.rounding).all()
        note = notes.remark if is_rounding else notes.doubt
        note("moved to the special position beside it", f"{site.label} ({shift:.3f} Å)")
    return orbit


def _without_images(
    sites: Sequence[Site], operations: Operations, cell: np.ndarray, notes: Notes
) -> list[Site]:
    """Return whole atoms without those that are images of another one of the list.

    Databases list equivalent atoms, too, where they have drawn whole molecules.
    """
    if len(operations) == 1 or len(sites) == 1:
        return list(sites)
    places = np.array([site.frac for site in sites]) % 1 % 1  # twice: -1e-17 % 1 is 1
    images = np.concatenate([operations.images(frac) for frac in places]) % 1 % 1
    reach = min(_SAME_PLACE / heights(cell).min(), 0.5)
    _, near = KDTree(places, boxsize=1).query(images, k=2, distance_upper_bound=reach)
    image, column = np.nonzero(near < len(sites))
    first, second = image // len(operations), near[image, column]
    offset = _offsets(images[image], places[second])
    is_pair = (first < second) & (np.linalg.norm(offset @ cell, axis=1) <= _SAME_PLACE)
    dropped: set[int] = set()
    for i, j in sorted(set(zip(first[is_pair], second[is_pair], strict=True))):
        one, other = sites[i], sites[j]
        is_whole = one.occupancy == other.occupancy == 1 and one.element == other.element
        if is_whole and i not in dropped and j not in dropped:
            dropped.add(j)
            notes.remark("one atom, given twice", f"{one.label} and {other.label}")
    return [site for index, site in enumerate(sites) if index not in dropped]


def _offsets(positions: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return the offsets of positions [n, 3] from the nearest images of an origin [3]."""
    offset = positions - origin
    return offset - np.rint(offset)


def _without_doubles(
    sites: Sequence[Site], orbits: Sequence[np.ndarray], cell: np.ndarray, notes: Notes
) -> list[int]:
    """Return the sites to keep: one of those that share all their places.

    Raises StructureError for sites that share some, for elements that share a place, and for
    partial occupancy.
    """
    owner = np.repeat(np.arange(len(sites)), [len(orbit) for orbit in orbits])
    wrapped = np.concatenate(orbits)
    positions = (wrapped - np.floor(wrapped)) @ cell
    _check_crowding(sites, owner, positions)
    i, j, _, distance = periodic_neighbors(positions, cell, _ONE_ATOM)
    near = (owner[i] < owner[j]) | ((owner[i] == owner[j]) & (distance > 1e-8))
    occupancy = {index: site.occupancy for index, site in enumerate(sites)}
    for first, second, d in sorted(
        set(zip(owner[i][near], owner[j][near], distance[near], strict=True))
    ):
        _check_pair(sites[first], sites[second], orbits[first], orbits[second], float(d))
        if first in occupancy and second in occupancy:
            _merge(sites, occupancy, int(first), int(second), notes)
    for index, total in occupancy.items():
        if abs(total - 1) > 1e-3:
            raise StructureError(
                f"{sites[index].label} has partial occupancy ({total:g}); {ORDER_IT}"
            )
    return list(occupancy)


def _check_crowding(sites: Sequence[Site], owner: np.ndarray, positions: np.ndarray) -> None:
    """Refuse so many atoms about one place that their pairs would take all memory."""
    near, _ = KDTree(positions).query(positions, k=_CROWD, distance_upper_bound=_ONE_ATOM)
    if (crowded := np.flatnonzero(np.isfinite(near[:, -1]))).size:
        label = sites[owner[crowded[0]]].label
        raise StructureError(f"{label} has {_CROWD - 1} atoms or more within {_ONE_ATOM:g} Å")


def _check_pair(
    one: Site, other: Site, orbit: np.ndarray, other_orbit: np.ndarray, distance: float
) -> None:
    """Raise StructureError for two sites that are near, unless they are one site given twice."""
    if one.element != other.element and min(one.occupancy, other.occupancy) < 1:
        raise StructureError(
            f"{one.label} and {other.label} share a place: partial occupancy; {ORDER_IT}"
        )
    if distance > _SAME_PLACE or len(orbit) != len(other_orbit) or one.element != other.element:
        pair = f"{one.label} and {other.label} are" if one is not other else f"two {one.label} are"
        raise StructureError(f"{pair} only {distance:.2g} Å apart: no crystal is so dense")


def _merge(
    sites: Sequence[Site], occupancy: dict[int, float], first: int, second: int, notes: Notes
) -> None:
    """Make one site of two that share their places."""
    names = f"{sites[first].label} and {sites[second].label}"
    total = occupancy[first] + occupancy.pop(second)
    if abs(total - 1) <= 1e-3 or total < 1:  # parts of one element
        occupancy[first] = total
        notes.remark("parts of one atom", names)
    else:
        notes.remark("one atom, given twice", names)


# --- The formula and Z of the file ---


def _confirmed(
    atoms: Atoms, cell: np.ndarray, formula: Mapping[str, float], block: Block
) -> bool | None:
    """Return whether formula and Z, or the density, give these atoms; None if it tells neither."""
    units = _formula_units(atoms.counts, formula) if formula else None
    if formula and units is None:
        return False
    if units is not None and (told := _told_units(block)) is not None:
        return _agree(units, told, formula)
    density = _densities(atoms, cell, block)
    return None if density is None else density[2]


def _is_whole(atoms: Atoms, cell: np.ndarray, formula: Mapping[str, float], block: Block) -> bool:
    """Return whether atoms are those of a whole cell: not of one formula unit, as in NaCl."""
    confirmed = _confirmed(atoms, cell, formula, block)
    units = _formula_units(atoms.counts, formula) if formula else None
    return confirmed or (confirmed is None and units is not None and units > 1)


def _densities(atoms: Atoms, cell: np.ndarray, block: Block) -> tuple[float, float, bool] | None:
    """Return the density of the file, that of the atoms, and whether they agree, with H or D."""
    if (text := block.value("_exptl_crystal_density_diffrn")) is None:
        return None
    try:
        told, _, unit = read_number(text, "_exptl_crystal_density_diffrn")
    except StructureError:  # a text
        return None
    counts, volume = atoms.counts, abs(float(np.linalg.det(cell)))
    mass = sum(float(Element(e).atomic_mass) * count for e, count in counts.items())
    low, high = (m * _DENSITY_UNIT / volume for m in (mass, mass + 1.0063 * counts.get("H", 0)))
    margin = _DENSITY * told + unit / 2
    return told, low, low - margin <= told <= high + margin


def _formula_units(counts: Mapping[str, int], formula: Mapping[str, float]) -> float | None:
    """Return how many formula units the atoms are; None if they are none of that formula."""
    if counts.keys() != formula.keys():
        return None
    ratios = np.array([counts[element] / formula[element] for element in counts])
    middle = float(np.median(ratios))
    return middle if (np.abs(ratios - middle) <= _FORMULA * middle).all() else None


def _told_units(block: Block) -> int | None:
    text = block.value("_cell_formula_units_z") or ""
    return int(text) if text.isdecimal() and int(text) else None


def _agree(units: float, told: int, formula: Mapping[str, float]) -> bool:
    """Return whether Z is the number of formula units, or of reduced ones, as pymatgen writes."""
    whole = [round(number) for number in formula.values()]
    common = math.gcd(*whole) if whole == list(formula.values()) else 1
    return any(abs(number - told) <= _FORMULA * told for number in (units, units * common))


def _check_formula(
    atoms: Atoms, cell: np.ndarray, formula: Mapping[str, float], block: Block, notes: Notes
) -> None:
    """Compare the atoms with formula, Z and density of the file.

    Raises StructureError when the hydrogens of the formula have no place.
    """
    density, counts = _densities(atoms, cell, block), atoms.counts
    if density and not density[2] and not _confirmed(atoms, cell, formula, block):
        notes.doubt(f"the density is {density[0]:g} g/cm^3 in the file, and {density[1]:.4g} of "
                    "the atoms")  # fmt: skip
    if not formula:
        return
    if [element for element in formula if element not in counts] == ["H"]:
        raise StructureError(
            f"the formula is {_shown(formula)}, and no hydrogen has a place: add the hydrogens"
        )
    units, told = _formula_units(counts, formula), _told_units(block)
    if units is None:
        notes.doubt(f"the formula is {_shown(formula)}, and the cell holds {_shown(counts)}")
    elif told is not None and not _agree(units, told, formula):
        notes.doubt(f"Z is {told} in the file, and the cell holds {units:g} formula units")


def _check_alone(atoms: Atoms, cell: np.ndarray, notes: Notes) -> None:
    """Doubt atoms without neighbours, as where symmetry was lost, or lengths are not in Å."""
    nearest = _nearest(atoms, cell)
    alone = (nearest > _ALONE) & ~np.isin(atoms.elements, _NOBLE_GASES)
    for index in np.flatnonzero(alone):
        notes.doubt("atoms far from all others", atoms.labels[index])


def _nearest(atoms: Atoms, cell: np.ndarray) -> np.ndarray:
    """Return how far the nearest atom of each [N] is, in sums of covalent radii; at most 2."""
    radii = covalent_radii()[[NUMBERS[element] for element in atoms.elements]]
    pos = (atoms.frac - np.floor(atoms.frac)) @ cell
    i, j, _, distance = periodic_neighbors(pos, cell, 2 * _ALONE * radii.max())
    other = (distance > 1e-8) | (i != j)
    i, j, distance = i[other], j[other], distance[other]
    nearest = np.full(len(radii), 2.0)
    np.minimum.at(nearest, i, distance / (radii[i] + radii[j]))
    return nearest


def _shown(counts: Mapping[str, float]) -> str:
    return " ".join(f"{element}{count:g}" for element, count in counts.items())
