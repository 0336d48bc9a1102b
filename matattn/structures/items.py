"""Structures of a data set in a few arrays, each of which becomes PyG ``Data`` when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from matattn.structures.structure import wrapped

if TYPE_CHECKING:
    from torch_geometric.data import Data

Geometry = tuple[np.ndarray, np.ndarray, np.ndarray]  # z [N], pos [N, 3] Å, cell [3, 3] Å


@dataclass(frozen=True)
class Geometries:
    """Atoms of n structures in a row: ``sites`` [n] atoms each, in ``cell`` [n, 3, 3] Å.

    ``z`` holds all atomic numbers, ``pos`` all positions, Å; a molecule has a cell of zeros.
    """

    sites: np.ndarray
    z: np.ndarray
    pos: np.ndarray
    cell: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Mapping[str, Any] | Any]) -> Geometries:
        """Return those of items with z, pos and cell."""
        if isinstance(items, PackedItems):
            return items.geometries
        z, pos, cell = ([item[key].numpy() for item in items] for key in ("z", "pos", "cell"))
        sites = np.array([len(numbers) for numbers in z], dtype=np.int64)
        return cls(sites, *map(np.concatenate, (z, pos, cell)))

    @cached_property
    def ends(self) -> np.ndarray:
        """Return where the atoms of each structure end [n]."""
        return np.cumsum(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def atoms(self, row: int) -> slice:
        """Return where the atoms of a structure stand."""
        return slice(self.ends[row] - self.sites[row], self.ends[row])

    def __getitem__(self, row: int) -> Geometry:
        atoms = self.atoms(row)
        return self.z[atoms], self.pos[atoms], self.cell[row]

    def part(self, start: int, stop: int) -> Geometries:
        """Return consecutive structures, ``start`` to before ``stop``."""
        atoms = slice(self.ends[start] - self.sites[start], self.ends[stop - 1])
        rows = slice(start, stop)
        return Geometries(self.sites[rows], self.z[atoms], self.pos[atoms], self.cell[rows])

    def fingerprint(self) -> str:
        """Return the SHA-256 of all of it."""
        digest = hashlib.sha256()
        for array in (self.sites, self.z, self.pos, self.cell):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class PackedItems(Sequence["Data"]):
    """A sequence of structures without an object for each: of 100,000, some megabytes.

    An element is a new ``Data`` at every access, and its tensors are parts of the arrays.

    Args:
        ids: of the structures.
        geometries: int64 and float32.
        y: labels [n, T], float32.
    """

    def __init__(self, ids: Sequence[str], geometries: Geometries, y: np.ndarray) -> None:
        self.ids, self.geometries, self.y = ids, geometries, y

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        coords: Geometries,
        rows: np.ndarray,
        labels: np.ndarray,
    ) -> PackedItems:
        """Return some ``rows`` of a table, with their labels [n, T].

        ``coords`` has fractional coordinates, and Cartesian ones where the cell is zero.
        """
        sites = coords.sites[rows]
        pos = np.empty((sites.sum(), 3), dtype=np.float32)
        z = np.empty(len(pos), dtype=np.int64)
        end = 0
        for row, count in zip(rows, sites, strict=True):
            start, end = end, end + count
            numbers, places, cell = coords[row]
            z[start:end] = numbers
            pos[start:end], _ = wrapped(places, cell if cell.any() else None)
        geometries = Geometries(sites, z, pos, coords.cell[rows].astype(np.float32))
        return cls([ids[row] for row in rows], geometries, np.asarray(labels, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Data: ...
    @overload
    def __getitem__(self, index: slice) -> list[Data]: ...
    def __getitem__(self, index: Any) -> Any:
        import torch
        from torch_geometric.data import Data

        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        z, pos, cell = map(torch.from_numpy, self.geometries[row])
        y = torch.from_numpy(self.y[row : row + 1])
        return Data(z=z, pos=pos, cell=cell[None], y=y, id=self.ids[row])
