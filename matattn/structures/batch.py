"""Batches of crystals and molecules: one list of all atoms, without padding.

A molecule is a structure without a cell: its cell is zero, and its images are its atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from matattn.kernels.periodic_attention.reference import safe_distance
from matattn.kernels.precision import full_precision
from matattn.structures.harmonics import count, of_edges
from matattn.structures.image_rule import ImageRule
from matattn.structures.neighbors import Neighbors


@runtime_checkable
class Structures(Protocol):
    """The keys that networks need of a batch: a ``CrystalBatch``, or a PyG ``Batch`` with them.

    A batch with symmetry also has ``orbit_size``, ``multiplicity`` and ``distance``, and
    ``harmonics`` if its rule has a degree; one with values of pairs has ``pair_index``.
    """

    z: Tensor
    pos: Tensor
    cell: Tensor
    batch: Tensor
    edge_index: Tensor
    image: Tensor | None

    @property
    def num_graphs(self) -> int:
        """Return the number of structures."""


def edge_length(batch: Structures) -> Tensor:
    """Return the length [E] of every edge, Å; without symmetry differentiable by pos and cell."""
    if getattr(batch, "multiplicity", None) is not None:
        return cast(Any, batch).distance
    return safe_distance(edge_vector(batch))


def edge_vector(batch: Structures) -> Tensor:
    """Return the vector [E, 3] from target to source of every edge, Å, without symmetry."""
    source, target = batch.edge_index
    source_pos = batch.pos[source]
    if batch.image is not None:
        cell = batch.cell[batch.batch[target]]
        with full_precision(cell):
            source_pos = source_pos + torch.einsum("et,etx->ex", batch.image.to(batch.pos), cell)
    return source_pos - batch.pos[target]


def edge_harmonics(batch: Structures, degree: int) -> Tensor:
    """Return the spherical harmonics [E, F] of every edge up to a degree; see ``ImageRule``.

    Without symmetry they are differentiable by pos and cell.

    Raises ValueError when a batch with symmetry was made without them.
    """
    if getattr(batch, "multiplicity", None) is None:
        vectors = edge_vector(batch)
        return of_edges(vectors, safe_distance(vectors), degree)
    found = getattr(batch, "harmonics", None)
    if found is None or found.shape[1] != count(degree):
        raise ValueError(
            f"the batch has no spherical harmonics up to degree {degree}; make its neighbour list "
            "with the network's image_rule"
        )
    return found


@dataclass  # not frozen: Lightning's 64-true converts the fields
class CrystalBatch:
    """B crystals with N rows and E neighbours in all; keys as in PyTorch Geometric.

    A row is an atom, and source j of a neighbour is at pos[j] + image @ cell. With symmetry, a row
    stands for ``orbit_size`` equivalent atoms and a neighbour for ``multiplicity`` images; then the
    batch has a ``distance``, which does not follow from the positions.
    """

    z: Tensor  # [N] atomic numbers
    pos: Tensor  # [N, 3] Å
    cell: Tensor  # [B, 3, 3] Å, rows are lattice vectors
    batch: Tensor  # [N] crystal of each row
    edge_index: Tensor  # [2, E], row 0 source j, row 1 target i, sorted by target
    image: Tensor | None  # [E, 3]
    orbit_size: Tensor | None  # [N]
    multiplicity: Tensor | None  # [E]
    distance: Tensor | None  # [E] Å
    y: Tensor  # [B, T], or a row for every atom or pair; NaN = no label
    row: Tensor  # [B] row of each crystal in its data set
    pair_index: Tensor | None = None  # [2, P] rows of the pairs that have values
    harmonics: Tensor | None = None  # [E, F]

    @property
    def num_graphs(self) -> int:
        """Return the number of crystals B."""
        return self.cell.shape[0]

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> CrystalBatch:
        """Return a copy on a device; ``dtype`` applies to the floating-point tensors."""
        moved = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None:
                kind = dtype if tensor.is_floating_point() else None
                tensor = tensor.to(device=device, dtype=kind, non_blocking=non_blocking)
            moved[field.name] = tensor
        return CrystalBatch(**moved)


@dataclass(frozen=True)
class CrystalGraph:
    """One crystal with its neighbour list, ready for batches."""

    z: Tensor  # [R] of the atoms that stand for the rows
    pos: Tensor  # [R, 3] Å
    cell: Tensor  # [1, 3, 3] Å
    y: Tensor  # [1, T], or a row for every atom or pair
    row: int
    neighbors: Neighbors
    pair_index: Tensor | None = None  # [2, P]


def to_graph(
    item: Mapping[str, Any] | Any, neighbors: Neighbors, row: int | None = None
) -> CrystalGraph:
    """Return a graph from a dict or PyG ``Data``: z, pos, cell, optionally y, row, pair_index.

    With symmetry, atoms and pairs cannot have values of their own. ``row`` stands for the item's.
    """
    if row is None:
        row = int(item["row"]) if "row" in item else -1
    atoms = torch.tensor(neighbors.atoms)  # a copy: those of files cannot be written
    y = item["y"] if "y" in item else torch.empty(1, 0, dtype=torch.float32)
    pairs = item["pair_index"] if "pair_index" in item else None
    return CrystalGraph(
        item["z"][atoms], item["pos"][atoms], item["cell"], y, row, neighbors, pairs
    )


def geometry(item: Mapping[str, Any] | Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return z [N], pos [N, 3] Å and cell [3, 3] Å, the arguments of an ``ImageRule``."""
    return item["z"].numpy(), item["pos"].numpy(), item["cell"][0].numpy()


def collate(
    items: Sequence[Mapping[str, Any] | Any],
    images: ImageRule,
    rows: Sequence[int | None] | None = None,
) -> CrystalBatch:
    """Return a batch of crystals with keys z, pos, cell and optionally y and row.

    ``rows`` stand for those of the items.
    """
    pairs = zip(items, rows or [None] * len(items), strict=True)
    return join([to_graph(item, images(*geometry(item)), row) for item, row in pairs])


def join(graphs: Sequence[CrystalGraph]) -> CrystalBatch:
    """Return a batch of crystals with neighbour lists, all of them with symmetry or none."""
    lists = [graph.neighbors for graph in graphs]
    rows = np.array([len(n.counts) for n in lists])
    edges = np.array([len(n.source) for n in lists])
    start = np.cumsum(rows) - rows
    source = np.concatenate([n.source for n in lists]) + np.repeat(start, edges)
    counts = np.concatenate([n.counts for n in lists])
    target = np.repeat(np.arange(len(counts)), counts)
    symmetric = lists[0].multiplicity is not None
    real = graphs[0].pos.dtype
    return CrystalBatch(
        z=torch.cat([graph.z for graph in graphs]),
        pos=torch.cat([graph.pos for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        batch=torch.from_numpy(np.repeat(np.arange(len(graphs)), rows)),
        edge_index=torch.from_numpy(np.stack([source, target])),
        image=None if symmetric else _joined([n.image for n in lists], torch.int64),
        orbit_size=_joined([n.orbit_size for n in lists], real) if symmetric else None,
        multiplicity=_joined([n.multiplicity for n in lists], real) if symmetric else None,
        distance=_joined([n.distance for n in lists], real) if symmetric else None,
        y=torch.cat([graph.y for graph in graphs]),
        row=torch.tensor([graph.row for graph in graphs]),
        pair_index=_joined_pairs(graphs, start),
        harmonics=None
        if lists[0].harmonics is None
        else _joined([n.harmonics for n in lists], real),
    )


def _joined_pairs(graphs: Sequence[CrystalGraph], start: np.ndarray) -> Tensor | None:
    pairs = [g.pair_index + int(s) for g, s in zip(graphs, start, strict=True)
             if g.pair_index is not None]  # fmt: skip
    return torch.cat(pairs, 1) if pairs else None


def _joined(arrays: Sequence[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(dtype)


def by_atom_budget(sizes: Iterable[int], budget: int) -> Iterator[list[int]]:
    """Yield consecutive indices of at most ``budget`` atoms, and of at least one crystal."""
    chosen: list[int] = []
    atoms = 0
    for index, size in enumerate(sizes):
        if chosen and atoms + size > budget:
            yield chosen
            chosen, atoms = [], 0
        chosen.append(index)
        atoms += size
    if chosen:
        yield chosen
