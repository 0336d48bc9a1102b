"""What the generated PDE data sets share: parallel runs, cache, split, mesh, matrices."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.sparse import csc_array
from scipy.sparse.linalg import SuperLU, splu
from scipy.spatial import Delaunay

from matattn.cache import Arrays, cached
from matattn.errors import DataError
from matattn.meshes.fields import MeshSample
from matattn.parallel import parallel_map

SPLITS = ("test", "val", "train")
_FORMAT = 1  # of the cached arrays

Make = Callable[[int, int], list[MeshSample]]


class NotSolvedError(Exception):
    """A sample that its solver cannot compute; the message says why."""


def generate(
    name: str, recipe: str, make: Make, sizes: Sequence[int], seed: int
) -> tuple[list[MeshSample], np.ndarray, list[str]]:
    """Make the samples, their split [n], and one message per run that was not solved.

    ``make(seed, run)``, a function of a module, returns the samples of one simulation, and depends
    on nothing else; ``sizes`` are numbers of simulations for train, val and test. The first runs
    are the test split and the next ones the validation split, so that both stay the same when more
    training samples are made. The samples of a run are in one split. ``recipe`` describes ``make``
    with its settings and version; it is the key under which the samples are cached.

    Raises DataError for invalid sizes or seeds, and when scikit-fem is missing.
    """
    if len(sizes) != 3 or any(not isinstance(n, int) or n < 0 for n in sizes) or not sizes[0]:
        raise DataError(
            f"{name}: data.sizes={list(sizes)}: expected the numbers of training, validation and"
            " test samples, at least one of them for training"
        )
    if not isinstance(seed, int) or seed < 0:
        raise DataError(f"{name}: data.seed={seed!r}: expected a whole number, 0 or more")
    runs = sum(sizes)
    key = repr((_FORMAT, recipe, seed, runs))
    arrays = cached(key, lambda: _to_arrays(_run_all(name, make, seed, runs)))
    results = _from_arrays(arrays)
    train, val, test = sizes
    split_of_run = np.repeat(SPLITS, (test, val, train))
    items = [sample for run in results if not isinstance(run, str) for sample in run]
    split = [s for s, run in zip(split_of_run, results, strict=True) if not isinstance(run, str)
             for _ in run]  # fmt: skip
    skipped = [f"{name}, run {n}: {run}" for n, run in enumerate(results) if isinstance(run, str)]
    return items, np.array(split), skipped


def random_mesh(
    rng: np.random.Generator, columns: int, rows: int, size: tuple[float, float] = (1.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Make nodes [N, 2] of a rectangle from the origin and their Delaunay triangles [E, 3].

    The nodes are those of a regular grid, the inner ones moved by up to a third of its spacing.
    """
    sides = (np.linspace(0, length, n) for length, n in zip(size, (columns, rows), strict=True))
    points = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    spacing = points[1, 1] - points[0, 0]
    points[1:-1, 1:-1] += rng.uniform(-1 / 3, 1 / 3, (columns - 2, rows - 2, 2)) * spacing
    points = points.reshape(-1, 2)
    triangles = Delaunay(points).simplices.astype(np.int64)
    a, b, c = points[triangles].swapaxes(0, 1)
    areas = np.linalg.det(np.stack([b - a, c - a], axis=1)) / (2 * size[0] * size[1])
    triangles = triangles[areas > 1e-9]  # collinear nodes on the boundary may give flat ones
    if abs(areas[areas > 1e-9].sum() - 1) > 1e-9 or len(np.unique(triangles)) != len(points):
        raise NotSolvedError("the triangles do not cover the rectangle")
    return points, triangles


class Layout:
    """The sparsity pattern of a stiffness matrix, of the free displacements of plane elements.

    ``nodes`` [E, n] are those of the elements and ``held`` [V, 2] the components that are not
    free. Displacement ``p`` of node ``v`` has the index ``2 v + p``; ``free`` holds the free ones.
    The pattern is computed once for all meshes that share the elements' nodes.
    """

    def __init__(self, nodes: np.ndarray, held: np.ndarray) -> None:
        self.free = np.flatnonzero(~held.reshape(-1))
        size = len(self.free)
        index = np.full(held.size, -1)
        index[self.free] = np.arange(size)
        dof = index[2 * nodes[:, None, :] + np.arange(2)[:, None]]  # [E, 2, n]
        rows, columns = np.broadcast_arrays(dof[:, :, None, :, None], dof[:, None, :, None, :])
        keys = np.where((rows < 0) | (columns < 0), size * size, columns * size + rows)
        keys, inverse = np.unique(keys, return_inverse=True)
        self._entry = inverse.ravel()
        keys = keys[keys < size * size]
        self._rows = (keys % size).astype(np.int32)
        self._starts = np.searchsorted(keys // size, np.arange(size + 1)).astype(np.int32)

    def matrix(self, elements: np.ndarray) -> csc_array:
        """Assemble the elements' matrices [E, 2, 2, n, n], of components, then nodes."""
        data = np.bincount(self._entry, elements.ravel())[: len(self._rows)]
        return csc_array((data, self._rows, self._starts), shape=(len(self.free),) * 2)


def factorised(matrix: csc_array) -> SuperLU:
    """Factorise a symmetric, positive definite matrix."""
    # Without pivots, and in an order for symmetric patterns: a third of the time of the defaults.
    symmetric = {"SymmetricMode": True}
    return splu(csc_array(matrix), "MMD_AT_PLUS_A", diag_pivot_thresh=0, options=symmetric)


def _run_all(name: str, make: Make, seed: int, runs: int) -> list[list[MeshSample] | str]:
    """Run ``make`` in parallel for every run; a run that is not solved becomes a message."""
    for module, package in (("skfem", "scikit-fem"), ("threadpoolctl", "threadpoolctl")):
        if importlib.util.find_spec(module) is None:
            raise DataError(f"{name}: making it needs {package}: pip install 'matattn[mesh]'")
    solve, title = partial(_attempt, make, seed), f"simulations ({name})"
    return list(parallel_map(solve, range(runs), title, chunk=4, start=_one_thread))


def _one_thread() -> None:
    """Use one thread for BLAS: with two in each of two processes plates take 1.6 times as long.

    The calls by SuperLU are too small for threads.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _attempt(make: Make, seed: int, run: int) -> list[MeshSample] | str:
    try:
        return make(seed, run)
    except NotSolvedError as error:
        return str(error)


def _to_arrays(results: list[list[MeshSample] | str]) -> Arrays:
    """Convert samples of different sizes to arrays without objects."""
    samples = [sample for run in results if not isinstance(run, str) for sample in run]
    arrays = {
        "samples": np.array([0 if isinstance(run, str) else len(run) for run in results]),
        "reasons": np.array([run if isinstance(run, str) else "" for run in results]),
        "ids": np.array([sample.id for sample in samples], dtype=str),
    }
    if not samples:
        return arrays
    arrays["nodes"] = np.array([len(sample.pos) for sample in samples])
    for part in ("pos", "x", "y"):
        arrays[part] = np.concatenate([getattr(sample, part) for sample in samples])
    for kind in samples[0].cells:
        arrays[f"cells/{kind}"] = np.concatenate([sample.cells[kind] for sample in samples])
        arrays[f"count/{kind}"] = np.array([len(sample.cells[kind]) for sample in samples])
    return arrays


def _from_arrays(arrays: Arrays) -> list[list[MeshSample] | str]:
    """Invert ``_to_arrays``."""
    samples = iter(_samples(arrays) if len(arrays["ids"]) else [])
    runs = zip(arrays["samples"], arrays["reasons"], strict=True)
    return [str(why) if why else [next(samples) for _ in range(count)] for count, why in runs]


def _samples(arrays: Arrays) -> list[MeshSample]:
    ends = np.cumsum(arrays["nodes"])[:-1]
    pos, x, y = (np.split(arrays[part], ends) for part in ("pos", "x", "y"))
    kinds = [key.partition("/")[2] for key in arrays if key.startswith("cells/")]
    cells = {
        kind: np.split(arrays[f"cells/{kind}"], np.cumsum(arrays[f"count/{kind}"])[:-1])
        for kind in kinds
    }
    return [
        MeshSample(str(identifier), pos[n], x[n], y[n], {kind: cells[kind][n] for kind in kinds})
        for n, identifier in enumerate(arrays["ids"])
    ]
