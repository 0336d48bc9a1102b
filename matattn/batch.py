"""Batches of crystals: atoms of all crystals in one list, no padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.neighbors import ImageRule


@dataclass(frozen=True)
class CrystalBatch:
    """B crystals with N atoms and E neighbours in all; keys as in PyTorch Geometric.

    ``edge_index`` is sorted by target (row 1); source j sits at pos[j] + image @ cell.
    """

    z: Tensor  # [N] atomic numbers
    pos: Tensor  # [N, 3] Å
    cell: Tensor  # [B, 3, 3] Å, rows are lattice vectors
    batch: Tensor  # [N] crystal of each atom
    edge_index: Tensor  # [2, E]
    image: Tensor  # [E, 3]
    multiplicity: Tensor  # [E]
    y: Tensor  # [B, T], NaN = no label
    row: Tensor  # [B] row of each crystal in its data set

    @property
    def num_graphs(self) -> int:
        return self.cell.shape[0]

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> CrystalBatch:
        """Move to a device; ``dtype`` applies to the floating-point tensors."""
        moved = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            kind = dtype if tensor.is_floating_point() else None
            moved[field.name] = tensor.to(device=device, dtype=kind, non_blocking=non_blocking)
        return CrystalBatch(**moved)


def collate(items: Sequence[Mapping[str, Any] | Any], images: ImageRule) -> CrystalBatch:
    """A batch of items with keys z, pos, cell and optionally y and row (dicts or PyG ``Data``).

    Neighbour lists are made here, so that they cost time in the loader's worker only.
    """
    lists = [images(item["pos"].numpy(), item["cell"][0].numpy()) for item in items]
    sizes = torch.tensor([len(item["z"]) for item in items])
    starts = np.cumsum([0, *sizes.tolist()])
    edge_index = [n.edge_index + start for n, start in zip(lists, starts, strict=False)]
    return CrystalBatch(
        z=torch.cat([item["z"] for item in items]),
        pos=torch.cat([item["pos"] for item in items]),
        cell=torch.cat([item["cell"] for item in items]),
        batch=torch.repeat_interleave(torch.arange(len(items)), sizes),
        edge_index=torch.from_numpy(np.concatenate(edge_index, axis=1)),
        image=torch.from_numpy(np.concatenate([n.image for n in lists])),
        multiplicity=torch.from_numpy(np.concatenate([n.multiplicity for n in lists])),
        y=torch.cat([item["y"] if "y" in item else torch.empty(1, 0) for item in items]),
        row=torch.tensor([int(item["row"]) if "row" in item else -1 for item in items]),
    )


def by_atom_budget(sizes: Iterable[int], budget: int) -> Iterator[list[int]]:
    """Consecutive index lists with at most ``budget`` atoms each (always at least one crystal)."""
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
