"""Structures with energies, forces and stresses, of which any may be unknown, and their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from matattn.structures.batch import CrystalBatch, CrystalGraph, join, to_graph
from matattn.structures.image_rule import ImageRule

# Of xx yy zz yz xz xy (Voigt's order, as ASE has it): rows and columns of a matrix.
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


@dataclass(frozen=True)
class Frame:
    """A structure and what is known of it; NaN is what is not.

    Units: Å, eV, eV/Å, eV/Å^3. Stress is positive under tension.
    """

    id: str
    z: np.ndarray  # [N] atomic numbers
    pos: np.ndarray  # [N, 3]
    cell: np.ndarray  # [3, 3], rows are lattice vectors; zeros: a molecule
    energy: float  # of the cell
    forces: np.ndarray  # [N, 3]
    stress: np.ndarray  # [3, 3]
    group: str = ""  # where it is from, as Surface; errors are reported by it

    @property
    def volume(self) -> float:
        """Return the volume of the cell, Å^3; 0 of a molecule."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def is_lone_atom(self) -> bool:
        """Return whether it is one atom without neighbours."""
        return len(self.z) == 1 and not self.cell.any()


@dataclass(frozen=True)
class Labeller:
    """The model that made the labels, where it can be asked for more of them."""

    name: str
    energy: Callable[[CrystalBatch], Tensor]  # of every structure of a batch [B], eV
    cutoff: float  # of its neighbours, Å


@dataclass(frozen=True)
class PotentialDataset:
    """Frames and the split of each: "train", "val", "test" or "" (unused)."""

    name: str
    frames: Sequence[Frame]
    split: np.ndarray  # [n]
    note: str = ""
    doubts: Sequence[str] = field(default_factory=list)  # what a reader should look at
    labeller: Labeller | None = None

    def rows(self, split: str) -> list[int]:
        """Return the indices of the frames of a split."""
        return np.flatnonzero(self.split == split).tolist()

    def elements(self) -> list[int]:
        """Return the atomic numbers of the training frames, sorted."""
        return sorted({int(z) for row in self.rows("train") for z in self.frames[row].z})

    def groups(self, split: str) -> list[str]:
        """Return the groups of the frames of a split, sorted."""
        return sorted({self.frames[row].group for row in self.rows(split)} - {""})

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, splits, geometries and labels."""
        digest = hashlib.sha256()
        for frame, split in zip(self.frames, self.split, strict=True):
            digest.update(f"{frame.id}:{split}:{frame.group}".encode())
            for values in (frame.z, frame.pos, frame.cell, frame.energy, frame.forces,
                           frame.stress):  # fmt: skip
                digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        return digest.hexdigest()


@dataclass  # not frozen: Lightning's 64-true converts the fields
class PotentialBatch:
    """A batch of structures with their labels, NaN where there is none."""

    structures: CrystalBatch
    energy: Tensor  # [B] eV
    forces: Tensor  # [N, 3] eV/Å
    stress: Tensor  # [B, 3, 3] eV/Å^3

    def to(self, device: torch.device | str | None = None, **options: bool) -> PotentialBatch:
        """Return a copy on a device."""
        moved = {f.name: getattr(self, f.name).to(device, **options) for f in fields(self)}
        return PotentialBatch(**moved)


def graph(frame: Frame, rule: ImageRule, row: int, dtype: torch.dtype) -> CrystalGraph:
    """Return a frame with its neighbour list, in the precision of a network."""
    item = {
        "z": torch.from_numpy(frame.z.astype(np.int64)),
        "pos": torch.from_numpy(frame.pos).to(dtype),
        "cell": torch.from_numpy(frame.cell).to(dtype)[None],
    }
    return to_graph(item, rule(frame.z, frame.pos, frame.cell), row)


def collate(
    frames: Sequence[Frame], graphs: Sequence[CrystalGraph], dtype: torch.dtype = torch.float32
) -> PotentialBatch:
    """Return the batch of frames with neighbour lists."""
    return PotentialBatch(
        structures=join(graphs),
        energy=torch.tensor([frame.energy for frame in frames], dtype=torch.float64),
        forces=torch.from_numpy(np.concatenate([frame.forces for frame in frames])).to(dtype),
        stress=torch.from_numpy(np.stack([frame.stress for frame in frames])).to(dtype),
    )
