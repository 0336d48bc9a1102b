"""Batches of meshes of different sizes, packed one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from matattn.meshes.fields import FieldDataset, MeshSample


@dataclass
class MeshBatch:
    """Nodes of B meshes: mesh b is the rows ``ptr[b]:ptr[b + 1]``.

    ``inputs`` [T, d + F] are scaled coordinates and input fields, the d coordinates first; ``y``
    [T, targets] is in physical units; ``ptr`` [B + 1] int64 stays on the CPU. ``row`` holds the
    indices of the meshes in their data set.
    """

    inputs: Tensor
    ptr: Tensor
    y: Tensor
    row: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def to(self, device: torch.device | str) -> MeshBatch:
        """Return a copy with its fields on a device."""
        return MeshBatch(self.inputs.to(device), self.ptr, self.y.to(device), self.row)


@dataclass(frozen=True)
class InputScaling:
    """The map (input - shift) / scale of every coordinate and input field [d + F]."""

    shift: list[float]
    scale: list[float]

    @classmethod
    def fit(cls, dataset: FieldDataset) -> InputScaling:
        """Fit to the training meshes, as ``Field.scaling`` asks."""
        train = dataset.samples("train")
        columns = np.concatenate([sample.inputs for sample in train]).astype(np.float64)
        shift, scale = [], []
        fields = (*dataset.coordinates, *dataset.inputs)
        for values, described in zip(columns.T, fields, strict=True):
            if described.scaling == "range":
                low, high = values.min(), values.max()
                middle, width = (low + high) / 2, (high - low) / 2
            elif described.scaling == "standard":
                middle, width = values.mean(), values.std()
            elif described.scaling == "none":
                middle, width = 0.0, 1.0
            else:
                middle, width = 0.0, float(described.scaling)
            shift.append(float(middle))
            scale.append(float(width) or 1.0)  # a constant column stays constant
        return cls(shift, scale)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the scaled inputs, float32."""
        return ((inputs - np.array(self.shift)) / np.array(self.scale)).astype(np.float32)


def collate_meshes(
    samples: Sequence[MeshSample],
    scaling: InputScaling,
    rows: Sequence[int] = (),
    share: tuple[int, int] = (0, 1),
) -> MeshBatch:
    """Return a batch of meshes, float32; with ``share`` (k, n) the k-th of n parts of each."""
    part, parts = share
    slices = [slice(len(s.pos) * part // parts, len(s.pos) * (part + 1) // parts) for s in samples]
    ends = np.cumsum([0, *(nodes.stop - nodes.start for nodes in slices)])
    pairs = list(zip(samples, slices, strict=True))
    inputs = scaling(np.concatenate([sample.inputs[nodes] for sample, nodes in pairs]))
    y = np.concatenate([sample.y[nodes] for sample, nodes in pairs]).astype(np.float32)
    as_tensor = torch.from_numpy
    return MeshBatch(as_tensor(inputs), as_tensor(ends), as_tensor(y), list(rows))
