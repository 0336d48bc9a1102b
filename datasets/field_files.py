"""Files of published PDE fields: NumPy and MATLAB arrays, read only as far as needed.

Nothing here unpickles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from matattn.errors import DataError
from matattn.structures.dataset import SPLITS
from matattn.text_files import open_bytes

Shape = tuple[int | None, ...]  # None: any length

_HDF5 = b"\x89HDF\r\n\x1a\n"


def present(path: Path, source: str) -> Path:
    """Return the file or folder ``path``.

    Raises DataError, which names ``source``, when it is missing, or only a pointer of Git LFS.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; get it from {source} and unpack it there, or set "
            "MATATTN_DATA to the folder of data sets"
        )
    try:
        if path.is_file():
            open_bytes(path).close()
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return path


def read_npy(path: Path, shape: Shape, source: str) -> np.ndarray:
    """Open an array that stays in its file until it is used."""
    try:
        array = np.load(present(path, source), mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array: {error}") from error
    check_shape(f"{path}", array.shape, shape)
    return array


def read_npz(path: Path, shapes: Mapping[str, Shape], source: str) -> dict[str, np.ndarray]:
    """Read some arrays of a .npz file and nothing else of it."""
    try:
        with open(present(path, source), "rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {key: content[key] for key in shapes}
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}; expected {', '.join(shapes)}") from error
    except Exception as error:  # zip files are damaged in many ways
        raise DataError(f"{path}: cannot be read as a .npz file: {error}") from error
    for key, shape in shapes.items():
        check_shape(f"{path}: {key}", arrays[key].shape, shape)
    return arrays


@contextmanager
def mat_arrays(path: Path, shapes: Mapping[str, Shape], source: str) -> Iterator[dict[str, Any]]:
    """Open arrays of a MATLAB file, to be indexed inside the block; since v7.3 it is HDF5."""
    try:
        with open(present(path, source), "rb") as file:
            head = file.read(1024)
        if head[:8] == _HDF5 or head[512:520] == _HDF5:
            import h5py

            with h5py.File(path, "r") as content:
                arrays = {key: _Reversed(content[key]) for key in shapes if key in content}
                yield _checked(path, arrays, shapes)
        else:
            from scipy.io import loadmat

            yield _checked(path, loadmat(path, variable_names=list(shapes)), shapes)
    except DataError:
        raise
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: needs h5py: pip install 'matattn[mesh]'") from error
    except Exception as error:  # parsers raise errors of any type on damaged files
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}") from error


class _Reversed:
    """A MATLAB array in HDF5, which stores its axes in reverse order."""

    def __init__(self, stored: Any) -> None:
        self.stored = stored
        self.shape = stored.shape[::-1]

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        full = index if isinstance(index, tuple) else (index,)
        full += (slice(None),) * (len(self.shape) - len(full))
        return self.stored[full[::-1]].T


def _checked(path: Path, arrays: dict[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    for key, shape in shapes.items():
        if key not in arrays:
            raise DataError(f"{path}: has no array {key!r}")
        check_shape(f"{path}: {key}", arrays[key].shape, shape)
    return arrays


def check_shape(where: str, shape: Sequence[int], published: Shape) -> None:
    """Raise DataError unless ``shape`` is the published one."""
    if len(shape) != len(published) or any(
        expected not in (None, length) for length, expected in zip(shape, published, strict=True)
    ):
        text = ", ".join("any" if length is None else str(length) for length in published)
        raise DataError(
            f"{where}: has the shape {tuple(shape)}, the published one is ({text}); is this "
            "another version of the data?"
        )


def published_split(
    path: Path, count: int, sizes: Sequence[int], test_last: bool = False
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the pieces of ``count`` samples that are used, and their split [sum of sizes].

    Training and validation samples come first; test samples follow, or are the last of the file.
    """
    train, val, test = sizes
    if (total := train + val + test) > count:
        raise DataError(
            f"{path}: has {count} samples, the split {list(sizes)} needs {total}; give smaller "
            "data.sizes"
        )
    start = count - test if test_last else train + val
    pieces = slice(0, train + val), slice(start, start + test)
    return pieces, np.repeat(np.array(SPLITS), sizes)


def row_numbers(pieces: Sequence[slice]) -> list[int]:
    """Return the indices of the samples in the file, which their ids contain."""
    return [row for piece in pieces for row in range(piece.start, piece.stop)]


def take(array: Any, pieces: Sequence[slice], *index: Any) -> np.ndarray:
    """Return the samples of all pieces as float32, of each only the entries at ``index``."""
    parts = [np.asarray(array[(piece, *index)], dtype=np.float32) for piece in pieces]
    return np.concatenate(parts)


def quads(grid: tuple[int, int]) -> np.ndarray:
    """Return the quadrilaterals [E, 4] of a grid whose nodes are numbered row by row."""
    nodes = np.arange(grid[0] * grid[1]).reshape(grid)
    corners = nodes[:-1, :-1], nodes[1:, :-1], nodes[1:, 1:], nodes[:-1, 1:]
    return np.stack(corners, axis=-1).reshape(-1, 4)
