"""Surface pressure of DrivAerML cars at points that the authors of FLARE sampled in advance.

Ashton et al., "DrivAerML: High-Fidelity Computational Fluid Dynamics Dataset for Road-Car External
Aerodynamics", arXiv 2408.11969; CC-BY-SA 4.0. Folders train and test hold run_<i>.npz with
surface_mesh_centers [n, 3] (m) and surface_fields [n, 4]: pressure divided by the density and wall
shear stress (m^2/s^2) at centres of surface cells, so there is no mesh between the points.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matattn.datasets.field_files import present, read_npz
from matattn.errors import DataError
from matattn.meshes.fields import Field, FieldDataset, MeshSample
from matattn.structures.dataset import check_sizes

SOURCE = (
    "https://huggingface.co/datasets/vedantpuri/PDESurrogates "
    "(drivaerml_surface_presampled_<points>.tar.gz)"
)
POINTS = {f"{n}k": n * 1000 for n in (10, 40, 50, 100, 200, 300, 400, 500)} | {"1m": 10**6}


def load(
    name: str,
    path: str,
    points: str = "40k",
    sizes: Sequence[int] | None = None,
    note: str = "",
) -> FieldDataset:
    """Read the mean pressure on the cars, with the authors' split into folders train and test.

    Args:
        name: what reports call the data.
        path: the folder with train and test.
        points: number of points on each car, a key of ``POINTS``.
        sizes: samples that train, val and test must have.
        note: what errors may be compared with.

    Coordinates are mapped to [-1, 1] by their range over the training cars; FLARE maps them to
    [0, 1] by fixed bounds (-0.9425 to 4.1325, -1.1314 to 1.1317 and -0.3176 to 1.2445 m).

    Raises:
        DataError: if a folder is missing or empty, or a file has another number of points.
    """
    if points not in POINTS:
        raise DataError(f"data.points={points!r}: choose {', '.join(POINTS)}")
    count = POINTS[points]
    shapes = {"surface_mesh_centers": (count, 3), "surface_fields": (count, 4)}
    items, split = [], []
    for part in ("train", "test"):
        folder = present(Path(path) / part, SOURCE)
        for file in sorted(folder.glob("run_*.npz"), key=_number):
            arrays = read_npz(file, shapes, SOURCE)
            pos = arrays["surface_mesh_centers"].astype(np.float32)
            pressure = arrays["surface_fields"][:, :1].astype(np.float32)
            items.append(MeshSample(file.stem, pos, np.empty_like(pos[:, :0]), pressure))
            split.append(part)
    assigned = np.array(split, dtype="<U5")
    check_sizes(path, assigned, sizes)
    coordinates = tuple(Field(axis, "m", "range") for axis in "xyz")
    target = Field("pressure_over_density", "m^2/s^2")
    return FieldDataset(name, coordinates, (), (target,), items, assigned, note)


def _number(file: Path) -> tuple[int, str]:
    """Return a sort key by which run 9 comes before run 10."""
    return int("".join(re.findall(r"\d", file.stem)) or 0), file.stem
