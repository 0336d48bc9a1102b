"""Data sets of crystals and molecules with properties, for training and evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from matattn.errors import DataError
from matattn.structures.items import Geometries, PackedItems
from matattn.units import Property

if TYPE_CHECKING:
    from torch_geometric.data import Data

SPLITS = ("train", "val", "test")
LEVELS = ("structure", "atom", "pair")  # what has a value
CALIBRATION = "calibration"  # training rows held out for the width of intervals and for tuning
EVALUATED = ("train", CALIBRATION, "val", "test")


@dataclass(frozen=True)
class PropertyDataset:
    """Structures as PyG ``Data`` (z, pos Å, cell Å, y [1, T], id), and their split.

    ``items`` may make an element at every access (``PackedItems``): to change one, use a list.
    A molecule has a cell of zeros. Labels y are in the units of ``targets``; NaN is a missing one.
    Where atoms have values (``level``), y has a row for each atom; where pairs do, for each of
    ``pair_index`` [2, P].

    ``floors`` are predictions, as ``labels()``, of cheap methods that came with the data. ``note``
    says what errors on these rows may be compared with; ``skipped`` holds one message per row of
    the source that could not be used, ``doubts`` one for each reason to doubt a row that is used.
    """

    name: str
    targets: tuple[Property, ...]
    items: Sequence[Data]
    split: np.ndarray  # [n] of "train", "calibration", "val", "test" or "" (unused)
    note: str
    skipped: list[str] = field(default_factory=list)
    level: str = LEVELS[0]
    floors: dict[str, np.ndarray] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.items:
            reason = f"; first problem: {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"{self.name}: no usable structure{reason}")
        labels = self.labels()
        for column, target in enumerate(self.targets):
            labelled = ~np.isnan(labels[:, column])
            if not labelled.any():
                raise DataError(f"{self.name}: every label of {target.name} is missing (NaN)")
            if not labelled[self.label_rows("train")].any():
                raise DataError(f"{self.name}: no training row has a label of {target.name}")

    def rows(self, split: str) -> np.ndarray:
        """Return the indices of the items of ``split``."""
        return np.flatnonzero(self.split == split)

    def ids(self) -> Sequence[str]:
        """Return the names of the structures."""
        if isinstance(self.items, PackedItems):
            return self.items.ids
        return [item.id for item in self.items]

    def sites(self) -> np.ndarray:
        """Return the numbers of atoms [n]."""
        return sites(self.items)

    def numbers(self) -> list[np.ndarray]:
        """Return the atomic numbers of every structure."""
        atoms = Geometries.of(self.items)
        return np.split(atoms.z, atoms.ends[:-1])

    def labels(self) -> np.ndarray:
        """Return all labels [n, T] in physical units: of structures, or of their atoms or pairs."""
        if isinstance(self.items, PackedItems):
            return self.items.y.copy()
        return np.concatenate([item.y.numpy() for item in self.items])

    def owners(self) -> np.ndarray:
        """Return the item [n] that each row of ``labels`` belongs to."""
        if isinstance(self.items, PackedItems):
            return np.arange(len(self.items))
        return np.repeat(np.arange(len(self.items)), [len(item.y) for item in self.items])

    def label_rows(self, split: str) -> np.ndarray:
        """Return the rows of ``labels`` that belong to ``split``."""
        return np.flatnonzero(self.split[self.owners()] == split)

    @property
    def has_molecules(self) -> bool:
        """Return whether any structure has no cell."""
        return not Geometries.of(self.items).cell.any((1, 2)).all()

    @property
    def extensive(self) -> bool:
        """Return whether the targets grow with the structure; DataError if only some do."""
        kinds = {target.extensive for target in self.targets}
        if len(kinds) > 1:
            names = ", ".join(t.name for t in self.targets if t.extensive)
            raise DataError(
                f"{self.name}: {names} grow with the number of atoms and the other targets do not; "
                "train them apart (data.targets=[...])"
            )
        return kinds.pop()

    def formulas(self) -> list[str]:
        """Return a key of the reduced formula of every structure."""
        return [formula_key(z) for z in self.numbers()]

    def limit(self, rows: int, seed: int) -> PropertyDataset:
        """Return these data with only so many training rows, drawn with ``seed``.

        With one seed, the rows of a smaller number are among those of a larger one. Raises
        DataError when there are not so many.
        """
        train = self.rows(SPLITS[0])
        if rows > len(train):
            raise DataError(f"{self.name}: has {len(train)} training rows, {rows} were asked for")
        split = self.split.copy()
        split[np.random.default_rng(seed).permutation(train)[rows:]] = ""
        return replace(self, split=split)

    def hold_out(self, fraction: float) -> PropertyDataset:
        """Return these data with about ``fraction`` of the training formulas for calibration.

        All training rows of a formula move together. The choice depends on a hash of the formula
        alone, so that every run on these data holds out the same rows.
        """
        kept = group_split(self.formulas(), CALIBRATION, (1 - fraction, fraction, 0.0)) == SPLITS[0]
        split = self.split.astype("<U11")
        split[(split == SPLITS[0]) & ~kept] = CALIBRATION
        return replace(self, split=split)

    def elements(self, split: str | None = "train") -> list[int]:
        """Return the atomic numbers that occur in ``split`` (None: in any), sorted."""
        numbers = self.numbers()
        chosen = numbers if split is None else [numbers[row] for row in self.rows(split)]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *chosen])).tolist()

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, atoms, geometry, labels and split."""
        digest, atoms = hashlib.sha256(), Geometries.of(self.items)
        starts = np.searchsorted(self.owners(), np.arange(1, len(self.items)))
        labels = np.split(self.labels(), starts)
        for row, (name, split) in enumerate(zip(self.ids(), self.split, strict=True)):
            digest.update(f"{name}:{split}".encode())
            for array in (*atoms[row], labels[row]):
                digest.update(array.tobytes())
        return digest.hexdigest()


def sites(items: Sequence[Any]) -> np.ndarray:
    """Return the numbers of atoms [n] of items with z."""
    if isinstance(items, PackedItems):
        return items.geometries.sites
    return np.array([len(item["z"]) for item in items], dtype=np.int64)


def formula_key(z: Sequence[int] | np.ndarray) -> str:
    """Return a key of the reduced formula: atomic numbers in their smallest ratio."""
    counts = np.bincount(z).tolist()
    divisor = math.gcd(*counts)
    return " ".join(f"{z}:{count // divisor}" for z, count in enumerate(counts) if count)


def random_split(count: int, seed: int, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> np.ndarray:
    """Return a seeded split of ``count`` rows into exact fractions of train, val and test."""
    order = np.random.default_rng(seed).permutation(count)
    bounds = np.round(np.cumsum(fractions) * count).astype(int)
    split = np.full(count, SPLITS[-1], dtype="<U5")
    split[order[: bounds[0]]] = SPLITS[0]
    split[order[bounds[0] : bounds[1]]] = SPLITS[1]
    return split


def group_split(
    groups: Sequence[str], seed: int | str = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)
) -> np.ndarray:
    """Return a split that keeps rows of one group together, by a hash of seed and group.

    With the reduced formula as group, no composition is in two splits. A row keeps its split when
    other rows are added.
    """
    edges = np.cumsum(fractions)[:2]
    names = []
    for group in groups:
        digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        names.append(SPLITS[int(np.searchsorted(edges, position, side="right"))])
    return np.array(names, dtype="<U5")


def check_sizes(source: str, split: np.ndarray, sizes: Sequence[int] | None) -> None:
    """Raise DataError unless train, val and test have the ``sizes`` of a benchmark."""
    rows = [int((split == name).sum()) for name in SPLITS]
    if sizes is not None and rows != list(sizes):
        raise DataError(
            f"{source}: train/val/test have {rows} rows, the benchmark has {list(sizes)}: another "
            "version of the data, or rows that could not be used"
        )
