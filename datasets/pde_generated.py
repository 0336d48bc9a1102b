"""What the generated PDE data sets share: samples made in parallel, kept, and split."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from rich.console import Console
from rich.progress import track

from matattn.cache import Arrays, cached
from matattn.errors import DataError
from matattn.fields import MeshSample
from matattn.runtime import cores

SPLITS = ("test", "val", "train")
_FORMAT = 1  # of the kept arrays

Make = Callable[[int, int], list[MeshSample]]


class NotSolvedError(Exception):
    """A sample that its solver cannot give; the message says why."""


def generate(
    name: str, recipe: str, make: Make, sizes: Sequence[int], seed: int
) -> tuple[list[MeshSample], np.ndarray, list[str]]:
    """Samples, their split [n], and one message per run that was not solved.

    ``make(seed, run)``, a function of a module, gives the samples of one simulation, and depends
    on nothing else; ``sizes`` counts simulations for train, val and test. The first runs are the
    test split and the next ones the validation split, so that both stay as they are when more
    training samples are asked for. The samples of a run stay in one split. ``recipe`` names what
    ``make`` does, with its settings and version: the samples are kept under it.

    Raises DataError for sizes that make no data set, and when scikit-fem is missing.
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
    made = _from_arrays(arrays)
    train, val, test = sizes
    split_of_run = np.repeat(SPLITS, (test, val, train))
    items = [sample for run in made if not isinstance(run, str) for sample in run]
    split = [s for s, run in zip(split_of_run, made, strict=True) if not isinstance(run, str)
             for _ in run]  # fmt: skip
    skipped = [f"{name}, run {n}: {run}" for n, run in enumerate(made) if isinstance(run, str)]
    return items, np.array(split), skipped


def _run_all(name: str, make: Make, seed: int, runs: int) -> list[list[MeshSample] | str]:
    """What ``make`` gives for every run, or why it gave nothing, in parallel."""
    if importlib.util.find_spec("skfem") is None:
        raise DataError(f"{name}: making it needs scikit-fem: pip install 'matattn[mesh]'")
    processes = min(cores(), runs)
    pool = ProcessPoolExecutor(processes) if processes > 1 else None
    apply = partial(pool.map, chunksize=4) if pool else map
    console = Console(stderr=True)
    try:
        found = apply(partial(_attempt, make, seed), range(runs))
        return list(
            track(found, f"simulations ({name})", runs, console=console, transient=True,
                  disable=not console.is_terminal)
        )  # fmt: skip
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _attempt(make: Make, seed: int, run: int) -> list[MeshSample] | str:
    try:
        return make(seed, run)
    except NotSolvedError as error:
        return str(error)


def _to_arrays(made: list[list[MeshSample] | str]) -> Arrays:
    """Samples of different sizes as arrays without objects."""
    samples = [sample for run in made if not isinstance(run, str) for sample in run]
    arrays = {
        "samples": np.array([0 if isinstance(run, str) else len(run) for run in made]),
        "reasons": np.array([run if isinstance(run, str) else "" for run in made]),
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
    """The inverse of ``_to_arrays``."""
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
