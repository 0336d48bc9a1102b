"""Distortion of parts made by laser powder bed fusion: the data set of the FLARE paper.

Puri et al., "FLARE: Fast Low-rank Attention Routing Engine", arXiv 2508.12594; MIT licence. 1,100
training and 290 test parts of 736 to 47,542 nodes: folders train and test of <case>.npz with pos
[N, 3] (mm), elems [E, 8] (hexahedra), disp [N, 3] (mm) and fields that are not read here. Indices
in Parquet name the files of each split.

The errors that were published with these data are not relative errors of the displacement. Their
code computed the displacement's mean and deviation, but gave the object that decodes predictions
the mean m = 0.45099 and deviation s = 0.34213 of three random numbers; the targets were never
encoded. So both sides were decoded into s y + m, which is mostly m: displacements are at most
about 0.3 mm. ``published_metric`` computes this error for comparison. Our losses, metrics and
normalisation are those of the displacement itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matattn.datasets.field_files import present, read_npz
from matattn.errors import DataError
from matattn.meshes.fields import Field, FieldDataset, MeshSample
from matattn.structures.dataset import check_sizes

SOURCE = "https://huggingface.co/datasets/vedantpuri/LPBF_FLARE"
PUBLISHED_MEAN = 0.45099
PUBLISHED_STD = 0.34213

_SHAPES = {"pos": (None, 3), "elems": (None, 8), "disp": (None, 3)}


def load(
    name: str, path: str, sizes: Sequence[int] | None = (1100, 0, 290), note: str = ""
) -> FieldDataset:
    """Read the vertical displacement of printed parts, to be predicted from their meshes.

    Args:
        name: what reports call the data.
        path: the folder of the data set, with train and test.
        sizes: samples that train, val and test must have; None: any.
        note: what errors may be compared with.

    Coordinates are divided by 30, 30 and 60 mm, as published.

    Raises:
        DataError: if a folder or file is missing or has another format, or if there is an index
            and no pandas to read it.
    """
    root = present(Path(path), SOURCE)
    items, split = [], []
    for part in ("train", "test"):
        for file in _files(root, part):
            items.append(_read(file))
            split.append(part)
    assigned = np.array(split, dtype="<U5")
    check_sizes(path, assigned, sizes)
    coordinates = Field("x", "mm", 30.0), Field("y", "mm", 30.0), Field("z", "mm", 60.0)
    target = Field("displacement_z", "mm")
    return FieldDataset(name, coordinates, (), (target,), items, assigned, note)


def published_metric(true: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the error of one part as FLARE's code did, from displacements [N] or [N, 1] in mm.

    With the wrong mean m and deviation s, ||(s p + m) - (s y + m)|| / ||s y + m|| = s ||p - y|| /
    ||s y + m||, in place of ||p - y|| / ||y||. Published figures are means over the test parts.
    """
    error = np.linalg.norm(np.asarray(predicted, dtype=np.float64) - true)
    decoded = PUBLISHED_STD * np.asarray(true, dtype=np.float64) + PUBLISHED_MEAN
    return float(PUBLISHED_STD * error / np.linalg.norm(decoded))


def _files(root: Path, part: str) -> list[Path]:
    """List the files of a split: those of its index if there is one, else those of its folder."""
    indices = sorted([*root.glob(f"{part}*.parquet"), *root.glob(f"data/{part}*.parquet")])
    if indices:
        return [root / file for index in indices for file in _index(index)]
    return sorted(present(root / part, SOURCE).glob("*.npz"))


def _index(index: Path) -> list[str]:
    try:
        import pandas

        return [str(file) for file in pandas.read_parquet(index, columns=["file"])["file"]]
    except ImportError as error:
        raise DataError(
            f"{index}: needs pandas and pyarrow: pip install 'matattn[data]'"
        ) from error
    except Exception as error:  # pyarrow has errors of its own
        raise DataError(f"{index}: cannot be read as an index with a column file: {error}") from (
            error
        )


def _read(file: Path) -> MeshSample:
    arrays = read_npz(file, _SHAPES, SOURCE)
    pos, displacement = arrays["pos"].astype(np.float32), arrays["disp"].astype(np.float32)
    if arrays["elems"].size and not 0 <= arrays["elems"].min() <= arrays["elems"].max() < len(pos):
        raise DataError(f"{file}: elems has indices of nodes that do not exist")
    cells = {"hexahedron": arrays["elems"].astype(np.int64)}
    return MeshSample(file.stem, pos, np.empty_like(pos[:, :0]), displacement[:, 2:], cells)
