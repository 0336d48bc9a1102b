"""Data sets of fields on meshes, for training and prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from matattn.errors import DataError

SCALINGS = ("range", "standard", "none")
# Values that differ by less, relative to their size, are equal: single precision tells no more.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Field:
    """A coordinate, an input field or a predicted field.

    ``scaling`` says how a network sees a coordinate or input: ``"range"`` maps the training range
    to [-1, 1], ``"standard"`` subtracts the training mean and divides by the standard deviation,
    ``"none"`` leaves it as it is, and a number divides by it. Predicted fields are always
    standardised.
    """

    name: str
    unit: str
    scaling: str | float = "range"


@dataclass
class MeshSample:
    """Fields at the N nodes of one mesh (or the N points of a cloud), in physical units.

    ``pos`` [N, d] holds coordinates, ``x`` [N, F] input fields and ``y`` [N, T] the fields to
    predict, all float32 and without NaN. ``cells`` maps meshio's names of cell types
    (``"triangle"``, ``"quad"``, ``"hexahedron"``, ...) to their nodes [E, nodes], int64; it may be
    empty.
    """

    id: str
    pos: np.ndarray
    x: np.ndarray
    y: np.ndarray
    cells: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def inputs(self) -> np.ndarray:
        """Return coordinates and input fields [N, d + F]."""
        return np.concatenate([self.pos, self.x], axis=1)


@dataclass(frozen=True)
class FieldDataset:
    """Meshes with fields, and their split.

    ``coordinates``, ``inputs`` and ``targets`` describe the columns of ``pos``, ``x`` and ``y``.
    ``aligned`` says that node n is the same point of the body in every sample. ``grid`` is the
    shape of a structured grid whose nodes are numbered row by row. ``note`` says what errors may be
    compared with; ``skipped`` holds one message per sample that could not be used.

    Raises DataError when there is no training sample or a sample has an empty mesh, other columns,
    or a value that is not finite.
    """

    name: str
    coordinates: tuple[Field, ...]
    inputs: tuple[Field, ...]
    targets: tuple[Field, ...]
    items: list[MeshSample]
    split: np.ndarray  # [n] of "train", "val", "test" or "" (unused)
    note: str
    aligned: bool = False
    grid: tuple[int, ...] | None = None
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.items:
            reason = f"; first problem: {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"{self.name}: no usable mesh{reason}")
        for sample in self.items:
            check_sample(sample, self.coordinates, self.inputs, self.targets)
        if not len(self.rows("train")):
            raise DataError(f"{self.name}: no training sample")

    def rows(self, split: str) -> np.ndarray:
        """Return the indices of the items of ``split``."""
        return np.flatnonzero(self.split == split)

    def samples(self, split: str) -> list[MeshSample]:
        """Return the items of ``split``."""
        return [self.items[row] for row in self.rows(split)]

    def magnitudes(self) -> np.ndarray:
        """Return the size [d + F] of coordinates and inputs against which differences are rounding.

        That is the largest value of the training samples; of a coordinate at least the largest
        extent of any coordinate.
        """
        columns = np.concatenate([s.inputs for s in self.samples("train")]).astype(np.float64)
        sizes = np.abs(columns).max(axis=0)
        count = len(self.coordinates)
        sizes[:count] = np.maximum(sizes[:count], np.ptp(columns[:, :count], axis=0).max())
        return sizes

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, coordinates, fields, cells and split."""
        digest = hashlib.sha256()
        for item, split in zip(self.items, self.split, strict=True):
            digest.update(f"{item.id}:{split}".encode())
            for array in (item.pos, item.x, item.y, *item.cells.values()):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def check_sample(
    sample: MeshSample,
    coordinates: Sequence[Field],
    inputs: Sequence[Field],
    targets: Sequence[Field],
) -> None:
    """Raise DataError, naming sample and field, for a sample that a network cannot use."""
    nodes = len(sample.pos)
    if not nodes:
        raise DataError(f"{sample.id}: the mesh has no nodes")
    columns = (("pos", coordinates), ("x", inputs), ("y", targets))
    for key, fields in columns:
        array = getattr(sample, key)
        if array.shape != (nodes, len(fields)):
            names = ", ".join(f.name for f in fields) or "no field"
            raise DataError(
                f"{sample.id}: {key} has shape {array.shape}, expected {(nodes, len(fields))} "
                f"({names} at every node)"
            )
        bad = ~np.isfinite(array)
        if bad.any():
            node, column = np.argwhere(bad)[0]
            raise DataError(
                f"{sample.id}: {fields[column].name} is {array[node, column]} at node {node} "
                f"({bad.sum()} values are not finite)"
            )
