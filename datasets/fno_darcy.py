"""Darcy flow of FNO: -div(a grad u) = 1 in the unit square, u = 0 on its boundary.

Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021. The
coefficient a is 12 or 3, by the sign of a Gaussian random field. Training samples are those of the
file smooth1, test samples those of smooth2; there are no validation samples, but
``sizes=[900,100,200]`` takes some from the end of the training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matattn.datasets.field_files import mat_arrays, published_split, quads, take
from matattn.errors import DataError
from matattn.meshes.fields import Field, FieldDataset, MeshSample

SOURCE = (
    "https://huggingface.co/datasets/vedantpuri/PDESurrogates (FNO.tar.gz) or the drive that "
    "https://github.com/neuraloperator/neuraloperator names"
)


def load(
    name: str,
    path: str,
    stride: int = 5,
    resolution: int = 421,
    sizes: Sequence[int] = (1000, 0, 200),
    note: str = "",
) -> FieldDataset:
    """Read the solution u on every ``stride``-th node of the published grid.

    Args:
        name: what reports call the data.
        path: the folder darcy, with piececonst_r421_N1024_smooth1.mat and ..._smooth2.mat: coeff
            and sol [samples, resolution, resolution].
        stride: 5 gives the 85 x 85 nodes of most papers; it must divide resolution - 1.
        resolution: nodes along a side in the files.
        sizes: samples of train, val and test, the first of their files.
        note: what errors may be compared with.

    Coordinates are in units of the square and not scaled; the coefficient is standardised. As in
    the published loaders, x grows along the last axis of the arrays.

    Raises:
        DataError: if a file is missing or has another format.
    """
    if stride < 1 or (resolution - 1) % stride:
        raise DataError(f"data.stride={stride}: must divide {resolution - 1}")
    train, val, test = sizes
    parts = [
        _read(Path(path) / f"piececonst_r421_N1024_{file}.mat", count, stride, resolution)
        for file, count in (("smooth1", train + val), ("smooth2", test))
    ]
    side = (resolution - 1) // stride + 1
    line = np.linspace(0, 1, side, dtype=np.float32)
    pos = np.stack([np.tile(line, side), np.repeat(line, side)], axis=1)
    cells = {"quad": quads((side, side))}
    items = [
        MeshSample(f"{file}-{row:04}", pos, a.reshape(-1, 1), u.reshape(-1, 1), cells)
        for file, (coefficient, solution) in zip(("smooth1", "smooth2"), parts, strict=True)
        for row, (a, u) in enumerate(zip(coefficient, solution, strict=True))
    ]
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "1", "none"), Field("y", "1", "none")),
        inputs=(Field("coefficient", "1", "standard"),),
        targets=(Field("solution", "1"),),
        items=items,
        split=np.repeat(np.array(["train", "val", "test"]), sizes),
        note=note,
        aligned=True,
        grid=(side, side),
    )


def _read(file: Path, count: int, stride: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Read coefficient and solution [count, side, side] of the first samples of a file."""
    shape = (None, resolution, resolution)
    every = slice(None, None, stride)
    with mat_arrays(file, {"coeff": shape, "sol": shape}, SOURCE) as arrays:
        pieces, _ = published_split(file, arrays["coeff"].shape[0], (count, 0, 0))
        coefficient = take(arrays["coeff"], pieces[:1], every, every)
        return coefficient, take(arrays["sol"], pieces[:1], every, every)
