"""Batches of meshes of different sizes, packed one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from matattn.meshes.fields import ROUNDING, FieldDataset, MeshSample


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
        """Fit to the training meshes, as ``Field.scaling`` asks.

        A column that is constant but for rounding stays so: its noise is not scaled up.
        """
        train = dataset.samples("train")
        columns = np.concatenate([sample.inputs for sample in train]).astype(np.float64)
        shift, scale = [], []
        fields = (*dataset.coordinates, *dataset.inputs)
        for values, described, size in zip(columns.T, fields, dataset.magnitudes(), strict=True):
            if described.scaling == "range":
                low, high = values.min(), values.max()
                middle, width = (low + high) / 2, (high - low) / 2
            elif described.scaling == "standard":
                middle, width = values.mean(), values.std()
            elif described.scaling == "none":
                middle, width = 0.0, 1.0
            else:
                middle, width = 0.0, float(described.scaling)
            if described.scaling in ("range", "standard") and np.ptp(values) <= ROUNDING * size:
                width = size if np.ptp(values) else 1.0
            shift.append(float(middle))
            scale.append(float(width))
        return cls(shift, scale)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the scaled inputs, float32."""
        return ((inputs - np.array(self.shift)) / np.array(self.scale)).astype(np.float32)


@dataclass(frozen=True)
class TrainingRange:
    """What the training meshes had, so that other ones are told: see ``strange``.

    ``low`` and ``high`` [d + F] are of every coordinate and input field; ``sizes`` are the least
    and the largest of the meshes' sizes, each the largest extent of a mesh along a coordinate.
    """

    low: list[float]
    high: list[float]
    sizes: tuple[float, float]

    @classmethod
    def of(cls, dataset: FieldDataset) -> TrainingRange:
        """Return that of the training samples."""
        samples = dataset.samples("train")
        low, high = (
            limit([limit(s.inputs, axis=0) for s in samples], axis=0).astype(float).tolist()
            for limit in (np.min, np.max)
        )
        sizes = [_extent(sample) for sample in samples]
        return cls(low, high, (min(sizes), max(sizes)))

    def strange(self, sample: MeshSample, names: Sequence[str]) -> list[str]:
        """Return what is unlike the training meshes: perhaps other units.

        A column is when it leaves the training range by more than ``FAR`` times its width; a mesh,
        when it is ``SMALL`` times smaller than the smallest one.
        """
        found = []
        size = _extent(sample)
        if 0 < SMALL * size < self.sizes[0]:
            found.append(f"the mesh is {size:.3g} long, those of the training {self.sizes[0]:.3g}"
                         f" to {self.sizes[1]:.3g}: other units?")  # fmt: skip
        columns = zip(sample.inputs.T, self.low, self.high, names, strict=True)
        for number, (values, low, high, name) in enumerate(columns):
            least, most = float(values.min()), float(values.max())
            about = max(abs(low), abs(high), self.sizes[1] if number < sample.pos.shape[1] else 0)
            margin = max(FAR * (high - low), ROUNDING * about)
            if least < low - margin or most > high + margin:
                found.append(f"{name} is {_span(least, most)}, in the training {_span(low, high)}")
        return found


FAR, SMALL = 0.5, 10


def _extent(sample: MeshSample) -> float:
    return float(np.ptp(sample.pos, axis=0).max())


def _span(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if low != high else f"{low:.3g}"


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
