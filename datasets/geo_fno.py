"""Elasticity, pipe flow, transonic airfoils and plastic forging of Geo-FNO.

Li et al., "Fourier Neural Operator with Learned Deformations for PDEs on General Geometries",
JMLR 24 (388), 2023. Splits and scaling are those of the FLARE and Transolver papers; there are no
validation samples, but ``sizes=[900,100,200]`` takes some from the end of the training samples.
Numbers are as in the files, which name no units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matattn.datasets.field_files import (
    mat_arrays,
    published_split,
    quads,
    read_npy,
    row_numbers,
    take,
)
from matattn.errors import DataError
from matattn.meshes.fields import Field, FieldDataset, MeshSample

SOURCE = (
    "https://huggingface.co/datasets/vedantpuri/PDESurrogates (Geo-FNO.tar.gz) or the drive that "
    "https://github.com/neuraloperator/Geo-FNO names"
)


def load_elasticity(
    name: str,
    path: str,
    shape: Sequence[int] = (2000, 972),
    sizes: Sequence[int] = (1000, 0, 200),
    note: str = "",
) -> FieldDataset:
    """Read the stress in a hyperelastic unit cell with a random hole, clamped below, pulled above.

    Args:
        name: what reports call the data.
        path: the folder elasticity, with Meshes/Random_UnitCell_XY_10.npy [nodes, 2, samples] and
            Meshes/Random_UnitCell_sigma_10.npy [nodes, samples].
        shape: samples and nodes that the files must have.
        sizes: samples of train, val and test; the test samples are the last of the file.
        note: what errors may be compared with.

    Coordinates are not scaled. Nodes of different samples do not correspond, and there are no
    cells.

    Raises:
        DataError: if a file is missing or has another format.
    """
    samples, nodes = shape
    folder = Path(path) / "Meshes"
    xy = read_npy(folder / "Random_UnitCell_XY_10.npy", (nodes, 2, samples), SOURCE)
    sigma = read_npy(folder / "Random_UnitCell_sigma_10.npy", (nodes, samples), SOURCE)
    pieces, split = published_split(folder, samples, sizes, test_last=True)
    pos, stress = take(xy.transpose(2, 0, 1), pieces), take(sigma.T, pieces)
    none = np.empty((nodes, 0), dtype=np.float32)
    items = [
        MeshSample(f"elasticity-{row:04}", pos[i], none, stress[i, :, None])
        for i, row in enumerate(row_numbers(pieces))
    ]
    coordinates = Field("x", "", "none"), Field("y", "", "none")
    return FieldDataset(name, coordinates, (), (Field("stress", ""),), items, split, note)


def load_pipe(
    name: str,
    path: str,
    grid: Sequence[int] = (129, 129),
    sizes: Sequence[int] = (1000, 0, 200),
    note: str = "",
) -> FieldDataset:
    """Read the horizontal velocity of an incompressible flow through a curved pipe.

    ``path`` is the folder pipe, with Pipe_X.npy and Pipe_Y.npy [samples, *grid] and Pipe_Q.npy
    [samples, channels, *grid], of which channel 0 is the target; test samples follow the training
    samples. Coordinates are standardised. Raises DataError when a file is missing or has another
    format.
    """
    files = "Pipe_X.npy", "Pipe_Y.npy", "Pipe_Q.npy"
    target = Field("velocity_x", "")
    return _structured(name, Path(path), files, 0, target, "standard", grid, sizes, note)


def load_airfoil(
    name: str,
    path: str,
    grid: Sequence[int] = (221, 51),
    sizes: Sequence[int] = (1000, 0, 200),
    note: str = "",
) -> FieldDataset:
    """Read the Mach number of a transonic Euler flow around an airfoil.

    ``path`` is the folder airfoil/naca, with NACA_Cylinder_X.npy and NACA_Cylinder_Y.npy [samples,
    *grid] and NACA_Cylinder_Q.npy [samples, channels, *grid], of which channel 4 is the target;
    test samples follow the training samples. Coordinates are not scaled. Raises DataError when a
    file is missing or has another format.
    """
    files = "NACA_Cylinder_X.npy", "NACA_Cylinder_Y.npy", "NACA_Cylinder_Q.npy"
    target = Field("mach_number", "1")
    return _structured(name, Path(path), files, 4, target, "none", grid, sizes, note)


def _structured(
    name: str,
    folder: Path,
    files: tuple[str, str, str],
    channel: int,
    target: Field,
    scaling: str,
    grid: Sequence[int],
    sizes: Sequence[int],
    note: str,
) -> FieldDataset:
    rows, columns = grid
    x = read_npy(folder / files[0], (None, rows, columns), SOURCE)
    y = read_npy(folder / files[1], (len(x), rows, columns), SOURCE)
    fields = read_npy(folder / files[2], (len(x), None, rows, columns), SOURCE)
    if fields.shape[1] <= channel:
        raise DataError(
            f"{folder / files[2]}: has {fields.shape[1]} channels, expected at least {channel + 1}"
        )
    pieces, split = published_split(folder / files[0], len(x), sizes)
    pos = np.stack([take(x, pieces), take(y, pieces)], axis=-1).reshape(len(split), -1, 2)
    values = take(fields, pieces, channel).reshape(len(split), -1, 1)
    none, cells = np.empty((rows * columns, 0), dtype=np.float32), {"quad": quads((rows, columns))}
    items = [
        MeshSample(f"{folder.name}-{row:04}", pos[i], none, values[i], cells)
        for i, row in enumerate(row_numbers(pieces))
    ]
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "", scaling), Field("y", "", scaling)),
        inputs=(),
        targets=(target,),
        items=items,
        split=split,
        note=note,
        aligned=True,
        grid=(rows, columns),
    )


def load_plasticity(
    name: str,
    path: str,
    times: Sequence[int] | None = None,
    shape: Sequence[int] = (987, 101, 31, 20),
    sizes: Sequence[int] = (900, 0, 80),
    note: str = "",
) -> FieldDataset:
    """Read the deformation of a block forged by a die of random shape, one sample per time step.

    Args:
        name: what reports call the data.
        path: the folder plasticity, with plas_N987_T20.mat: input [simulations, rows] (the shape
            of the die) and output [simulations, rows, columns, steps, 4].
        times: steps to use, from 1; None: all.
        shape: simulations, rows, columns and steps that the file must have.
        sizes: simulations of train, val and test, whose steps stay together; the test simulations
            are the last of the file.
        note: what errors may be compared with.

    Coordinates are those of a unit square at rest. Inputs are the height of the die above each
    row of nodes and the time from 0 to 1. The published loaders number these coordinates column by
    column and the fields row by row; here both go row by row. Targets are the position and the
    displacement of each node (after Geo-FNO's plots; the file itself names no channel).

    Raises:
        DataError: if the file is missing, has another format, or has no such step.
    """
    simulations, rows, columns, steps = shape
    times = list(range(1, steps + 1)) if times is None else list(times)
    if not times or not set(times) <= set(range(1, steps + 1)):
        raise DataError(f"data.times={times}: choose steps from 1 to {steps}")
    file = Path(path) / "plas_N987_T20.mat"
    pieces, split = published_split(file, simulations, sizes, test_last=True)
    die, output = _read_plasticity(file, shape, pieces)
    across, along = np.meshgrid(*(np.linspace(0, 1, n) for n in (rows, columns)), indexing="ij")
    pos = np.stack([across, along], axis=-1).reshape(-1, 2).astype(np.float32)
    cells = {"quad": quads((rows, columns))}
    items = []
    for i, row in enumerate(row_numbers(pieces)):
        for time in times:
            progress = np.full(len(pos), (time - 1) / max(steps - 1, 1), dtype=np.float32)
            x = np.stack([np.repeat(die[i], columns), progress], axis=1)
            y = output[i, :, :, time - 1].reshape(-1, 4)
            items.append(MeshSample(f"plasticity-{row:04}-t{time:02}", pos, x, y, cells))
    channels = "x_deformed", "y_deformed", "displacement_x", "displacement_y"
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "", "none"), Field("y", "", "none")),
        inputs=(Field("die_height", "", "standard"), Field("time", "", "none")),
        targets=tuple(Field(channel, "") for channel in channels),
        items=items,
        split=np.repeat(split, len(times)),
        note=note,
        aligned=True,
        grid=(rows, columns),
    )


def _read_plasticity(
    file: Path, shape: Sequence[int], pieces: Sequence[slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Read dies [n, rows] and fields [n, rows, columns, steps, 4]."""
    shapes = {"input": (shape[0], shape[1]), "output": (*shape, 4)}
    with mat_arrays(file, shapes, SOURCE) as arrays:
        return take(arrays["input"], pieces), take(arrays["output"], pieces)
