"""The embedded data set ``prototypes``: 5,464 small inorganic crystals in 67 structure types.

Each row of ``prototypes.csv`` names a structure type, the elements on its sites, a volume and the
free shape parameters, so that a crystal is rebuilt from one line of text. The labels (formation
energy and bulk modulus) come from the machine-learned potential CHGNet 0.3.0 (Deng et al., Nature
Machine Intelligence 5, 1031, 2023), not from density-functional theory: see docs/prototypes.md
before comparing with anything. ``tools/prototypes/build.py`` made the table.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from matattn.datasets.prototypes.registry import PROTOTYPES, Parameter, Prototype
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset, random_split
from matattn.structures.structure import to_data, to_tensors
from matattn.units import find_properties

__all__ = [
    "PROTOTYPES",
    "TABLE_COLUMNS",
    "TABLE_PATH",
    "Parameter",
    "Prototype",
    "Row",
    "build_structure",
    "composition_split",
    "load",
    "read_table",
    "reduced_formula",
]

TABLE_PATH = Path(__file__).resolve().with_name("prototypes.csv")
TABLE_COLUMNS = (
    "id",
    "prototype",
    "elements",
    "volume",
    "shape",
    "formation_energy_per_atom",
    "bulk_modulus",
)

NOTE = (
    "the labels are predictions of the machine-learned potential CHGNet 0.3.0, not of"
    " density-functional theory: errors here are not comparable with any on Materials Project or"
    " JARVIS data."
)


def read_table(path: str | Path = TABLE_PATH) -> list[Row]:
    """Read the table of labelled crystals.

    Args:
        path: CSV file with the columns ``TABLE_COLUMNS``; the committed table by default.

    Returns:
        One :class:`Row` per crystal, in file order.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if a column is missing, or a row cannot be read (the message names the line).
    """
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in TABLE_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: missing column(s) {', '.join(missing)}")
        rows = []
        for record in reader:
            try:
                rows.append(_parse_row(record))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def load(
    name: str,
    targets: Sequence[str] = ("formation_energy_per_atom", "log10_bulk_modulus"),
    split: str = "composition",
    split_seed: int = 0,
) -> PropertyDataset:
    """Return the crystals as training data.

    Args:
        name: what reports call the data.
        targets: of formation_energy_per_atom (eV/atom) and log10_bulk_modulus (log10(GPa)).
        split: "composition" (80/10/10, no composition in two splits) or "random" (seeded).
        split_seed: seed of the random split.

    Raises:
        DataError: for an unknown target or split.
    """
    rows = read_table()
    properties = find_properties(targets)
    columns = {
        "formation_energy_per_atom": [row.formation_energy_per_atom for row in rows],
        "log10_bulk_modulus": [math.log10(row.bulk_modulus) for row in rows],
    }
    for target in properties:
        if target.name not in columns:
            raise DataError(
                f"prototypes has no target {target.name!r}; it has {', '.join(columns)}"
            )
    if split not in ("composition", "random"):
        raise DataError(f"data.split={split!r}: choose composition or random")
    labels = zip(*(columns[target.name] for target in properties), strict=True)
    items = [
        to_data(to_tensors(row.structure), label, row.id)
        for row, label in zip(rows, labels, strict=True)
    ]
    by_composition = np.array([row.split for row in rows])
    assigned = by_composition if split == "composition" else random_split(len(rows), split_seed)
    held_out = "whole compositions" if split == "composition" else "random rows"
    note = f"{NOTE} The split holds out {held_out}."
    return PropertyDataset(name, properties, items, assigned, note)


def build_structure(
    prototype: str, elements: Sequence[str], volume: float, shape: Sequence[float]
) -> Structure:
    """Build the primitive cell of a crystal of a given structure type.

    Args:
        prototype: a name in :data:`PROTOTYPES`.
        elements: element symbols in the order of the site letters A, B, C, ... of the prototype
            (``["Sr", "Ti", "O"]`` for ``perovskite``).
        volume: volume per atom, Å^3/atom.
        shape: values of the free parameters in the order of ``Prototype.parameters``
            (c/a and fractional coordinates of the conventional cell, both dimensionless).

    Returns:
        The crystal, its sites in the prototype's order, fractional coordinates in [0, 1).

    Raises:
        ValueError: if the prototype or an element is unknown, if the number of elements or of
            shape parameters is wrong, or if the volume is not positive and finite. Shape parameters
            may be out of their bounds.
    """
    if prototype not in PROTOTYPES:
        raise ValueError(f"unknown prototype {prototype!r}; known: {', '.join(PROTOTYPES)}")
    return PROTOTYPES[prototype].build(elements, volume, shape)


@dataclass(frozen=True)
class Row:
    """One labelled crystal.

    Attributes:
        id: stable name, ``<prototype>-<formula in site order>``, e.g. ``rocksalt-NaCl``. Site order
            makes it unique: ``half_heusler-TiSnNi`` and ``half_heusler-TiNiSn`` are two crystals.
        prototype: structure type, a name in :data:`PROTOTYPES`.
        elements: element symbols in the order of the prototype's site letters A, B, C, ...
        volume: equilibrium volume, Å^3/atom.
        shape: relaxed free parameters in the order of ``Prototype.parameters`` (dimensionless).
        formation_energy_per_atom: eV/atom, against the elements in their reference structures.
        bulk_modulus: GPa, Birch-Murnaghan at fixed shape.
    """

    id: str
    prototype: str
    elements: tuple[str, ...]
    volume: float
    shape: tuple[float, ...]
    formation_energy_per_atom: float
    bulk_modulus: float

    @property
    def structure(self) -> Structure:
        """Build the crystal's primitive cell, anew at each access."""
        return build_structure(self.prototype, self.elements, self.volume, self.shape)

    @property
    def reduced_formula(self) -> str:
        """Return the reduced formula, alphabetical and with every count: ``Cl1Na1``."""
        return reduced_formula(self.prototype, self.elements)

    @property
    def split(self) -> str:
        """Return ``train``, ``val`` or ``test`` (80/10/10), the same for all of a composition."""
        return composition_split(self.reduced_formula)


def reduced_formula(prototype: str, elements: Sequence[str]) -> str:
    """Return the reduced formula, alphabetical and with every count (``O3Sr1Ti1``)."""
    amounts: dict[str, int] = {}
    for element, count in zip(elements, PROTOTYPES[prototype].counts, strict=True):
        amounts[element] = amounts.get(element, 0) + count
    divisor = math.gcd(*amounts.values())
    return "".join(f"{element}{amounts[element] // divisor}" for element in sorted(amounts))


def composition_split(formula: str) -> str:
    """Map a reduced formula to ``train`` (80 %), ``val`` (10 %) or ``test`` (10 %).

    The SHA-256 of the text decides, so a composition keeps its split on every machine and when rows
    are added or removed.
    """
    bucket = int.from_bytes(hashlib.sha256(formula.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "val"}.get(bucket, "train")


def _parse_row(record: Mapping[str, str]) -> Row:
    row = Row(
        id=record["id"],
        prototype=record["prototype"],
        elements=tuple(record["elements"].split()),
        volume=float(record["volume"]),
        shape=tuple(float(value) for value in record["shape"].split()),
        formation_energy_per_atom=float(record["formation_energy_per_atom"]),
        bulk_modulus=float(record["bulk_modulus"]),
    )
    prototype = PROTOTYPES[row.prototype]
    if len(row.elements) != prototype.num_elements or len(row.shape) != len(prototype.parameters):
        raise ValueError(f"{row.id}: wrong number of elements or shape parameters")
    return row
