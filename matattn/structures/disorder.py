"""Ordered crystals in place of one with partial occupancies.

A site may hold one of several elements, or none, with given probabilities. In a supercell, equal
sites (of one set of probabilities) get whole atoms in these proportions. Every placement is taken
to be equally likely, as in a random alloy: short-range order, which a real crystal has, is not
known.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymatgen.core import Composition, Structure
from pymatgen.io.cif import CifParser

from matattn.errors import StructureError
from matattn.structures.neighbors import periodic_neighbors
from matattn.structures.remarks import add_remark
from matattn.structures.structure import wrapped

MOST_SITES = 48  # of a supercell
PRECISE = 0.02  # error of an occupancy that does not matter
_ROUGHEST = 0.05  # error of an occupancy at which there is no ordering
_TRIES = 100  # placements drawn for one whose atoms do not overlap
_OVERLAP = 0.8  # Å between atoms that are alternatives of each other
_LARGEST = 5_000_000  # bytes of a file
_FORMULA = 0.02  # share of an element in which formula and sites may differ

VACANCY = ""


Share = tuple[str, float]  # an element, or ``VACANCY``, and its probability


@dataclass(frozen=True)
class Orderings:
    """Ordered crystals, and what is to be said of them.

    ``are_all`` says that they are all placements there are, each once. ``remark`` names the
    supercell and the occupancies in it.
    """

    structures: list[Structure]
    are_all: bool
    remark: str


@dataclass(frozen=True)
class _Group:
    """Equal sites of the supercell, and what they hold together: an entry of ``kinds`` each."""

    sites: list[int]
    kinds: list[str]

    def placements(self) -> int:
        """Return the number of different ones."""
        counts = Counter(self.kinds).values()
        return math.factorial(len(self.kinds)) // math.prod(map(math.factorial, counts))


def read_disordered(path: Path) -> Structure:
    """Return the crystal of a CIF of one block with partial occupancies, read by pymatgen.

    What pymatgen remarks is kept. Raises StructureError when it cannot be read, when it
    holds another formula than it says, or is not disordered.
    """
    if path.stat().st_size > _LARGEST:
        raise StructureError(f"more than {_LARGEST // 10**6} MB with partial occupancies")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = CifParser(path, occupancy_tolerance=1.001)
            (block,) = parser.as_dict().values()
            (structure,) = parser.parse_structures(primitive=False)
    except Exception as error:  # pymatgen raises anything on damaged files
        reason = " ".join(str(error).split())[:200]
        raise StructureError(f"pymatgen cannot read its partial occupancies: {reason}") from None
    if structure.is_ordered:
        raise StructureError("pymatgen finds no partial occupancies in it")
    _check_formula(structure, block.get("_chemical_formula_sum"))
    for text in getattr(parser, "warnings", ()):
        add_remark(structure, f"pymatgen: {' '.join(text.split())}")
    return structure


def _check_formula(structure: Structure, told: str | None) -> None:
    """Raise StructureError when the sites do not add up to the formula that the file tells."""
    try:
        formula = Composition(told).fractional_composition if told else None
    except ValueError:
        formula = None
    found = structure.composition.element_composition.fractional_composition
    if formula is not None and not found.almost_equals(formula, rtol=0, atol=_FORMULA):
        raise StructureError(
            f"its formula is {told}, and its sites add up to {found.reduced_formula}"
        )


def orderings(structure: Structure, count: int, seed: int = 0) -> Orderings:
    """Return at most ``count`` different orderings: all, where there are no more, else drawn.

    Raises StructureError where no supercell of ``MOST_SITES`` sites has the occupancies within
    0.05, or loses an element, and where atoms overlap in nearly all placements.
    """
    structure = structure.get_primitive_structure(tolerance=0.01)
    members: dict[tuple[Share, ...], list[int]] = {}
    for index, site in enumerate(structure):
        members.setdefault(_shares(site.species.get_el_amt_dict()), []).append(index)
    shape, error = _shape(structure, members)
    multiple = math.prod(shape)
    cell = structure.copy()
    cell.make_supercell(np.diag(shape))
    groups = [  # the images of a site stand together
        _Group(
            [site * multiple + image for site in sites for image in range(multiple)],
            _kinds(shares, multiple * len(sites)),
        )
        for shares, sites in members.items()
    ]
    are_all = math.prod(group.placements() for group in groups) <= count
    drawn = _all(groups) if are_all else _random(groups, count, np.random.default_rng(seed))
    structures = _without_overlaps(cell, drawn, count)
    if not structures:
        raise StructureError("atoms overlap in all orderings that were tried")
    size = "x".join(map(str, shape))
    remark = f"{len(structures)} orderings of a {size} cell"
    if error > 1e-6:
        remark += f", occupancies within {error:.2g}"
    return Orderings(structures, are_all, remark)


def _shares(occupancies: Mapping[str, float]) -> tuple[Share, ...]:
    """Return the elements of a site and their probabilities, with that of a vacancy."""
    shares = {element: round(float(share), 6) for element, share in occupancies.items()}
    if (empty := 1 - sum(shares.values())) > 1e-3:
        shares[VACANCY] = round(empty, 6)
    return tuple(sorted(shares.items()))


def _kinds(part: tuple[Share, ...], sites: int) -> list[str]:
    """Return what equal sites hold, in whole atoms: the largest remainders are rounded up."""
    exact = np.array([share for _, share in part]) * sites
    counts = np.floor(exact + 1e-6).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: sites - counts.sum()]:
        counts[index] += 1
    return [name for (name, _), n in zip(part, counts, strict=True) for _ in range(n)]


def _shape(
    structure: Structure, members: Mapping[tuple[Share, ...], list[int]]
) -> tuple[tuple[int, int, int], float]:
    """Return the multiples of the lattice vectors, and the largest error of an occupancy.

    Of the supercells that are precise enough, the one whose shortest vector is longest, so that
    an atom is far from its images; of several, the most precise one, and then the smallest.
    """
    lengths = np.array(structure.lattice.abc)
    most = max(1, MOST_SITES // len(structure))
    errors = {multiple: _error(members, multiple) for multiple in range(1, most + 1)}
    least = min(errors.values())
    if least > _ROUGHEST:
        raise StructureError(
            f"no cell of at most {MOST_SITES} sites holds all its elements with occupancies "
            f"within {_ROUGHEST:g}"
        )
    shapes = [
        (a, b, multiple // (a * b))
        for multiple, error in errors.items()
        if error <= max(PRECISE, least + 1e-9)
        for a in range(1, multiple + 1)
        for b in range(1, multiple // a + 1)
        if multiple % (a * b) == 0
    ]

    def worth(shape: tuple[int, int, int]) -> tuple[float, float, int]:
        cells = math.prod(shape)
        return round(float(min(lengths * shape)), 6), -errors[cells], -cells

    best = max(shapes, key=worth)
    return best, errors[math.prod(best)]


def _error(members: Mapping[tuple[Share, ...], list[int]], multiple: int) -> float:
    """Return the largest error of an occupancy in so many cells; infinite if an element is lost."""
    error = 0.0
    for shares, sites in members.items():
        total = multiple * len(sites)
        held = Counter(_kinds(shares, total))
        for name, share in shares:
            if not held[name]:
                return math.inf
            error = max(error, abs(held[name] / total - share))
    return error


def _all(groups: Sequence[_Group]) -> Iterator[dict[int, str]]:
    """Yield every placement once: what each site holds."""
    orders = [list(_arrangements(Counter(group.kinds))) for group in groups]
    for choice in itertools.product(*orders):
        yield {
            site: kind
            for group, order in zip(groups, choice, strict=True)
            for site, kind in zip(group.sites, order, strict=True)
        }


def _arrangements(counts: Counter[str]) -> Iterator[list[str]]:
    """Yield every order of things of which there are so many of each kind."""
    *rare, common = sorted(counts, key=lambda kind: counts[kind])

    def fill(order: list[str], free: list[int], kinds: list[str]) -> Iterator[list[str]]:
        if not kinds:
            yield order
            return
        for chosen in itertools.combinations(free, counts[kinds[0]]):
            made = [kinds[0] if n in chosen else kind for n, kind in enumerate(order)]
            yield from fill(made, [n for n in free if n not in chosen], kinds[1:])

    yield from fill([common] * counts.total(), list(range(counts.total())), rare)


def _random(
    groups: Sequence[_Group], count: int, generator: np.random.Generator
) -> Iterator[dict[int, str]]:
    """Yield placements that differ, from ``_TRIES`` times as many as are wanted."""
    seen = set()
    for _ in range(_TRIES * count):
        placement = {
            site: str(kind)
            for group in groups
            for site, kind in zip(group.sites, generator.permutation(group.kinds), strict=True)
        }
        key = tuple(placement.values())
        if key not in seen:
            seen.add(key)
            yield placement


def _without_overlaps(
    cell: Structure, drawn: Iterable[dict[int, str]], count: int
) -> list[Structure]:
    """Return the first ``count`` placements without two atoms that are alternatives."""
    positions = wrapped(cell.frac_coords, cell.lattice.matrix)
    i, j, _, distance = periodic_neighbors(*positions, _OVERLAP)
    near = {(a, b) for a, b, d in zip(i, j, distance, strict=True) if a < b and d < _OVERLAP}
    made: list[Structure] = []
    for placement in drawn:
        if any(placement[a] and placement[b] for a, b in near):
            continue
        kept = [site for site in range(len(cell)) if placement[site]]
        made.append(Structure(cell.lattice, [placement[n] for n in kept], cell.frac_coords[kept]))
        if len(made) == count:
            break
    return made
