"""A cache of results that take long to compute, in ``$MATATTN_CACHE`` or ``~/.cache/matattn``.

The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from matattn.files import read_sealed, write_sealed

WORTH_KEEPING = 1.0  # seconds of work; cheaper results are computed again

Arrays = dict[str, np.ndarray]


def folder() -> Path:
    """Return the folder of the cache."""
    return Path(os.environ.get("MATATTN_CACHE") or Path.home() / ".cache" / "matattn")


def cached(key: str, build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of ``build()``, or those of an earlier call with the same ``key``.

    ``key`` must name everything that the result depends on, the version of the code included.
    Processes that build the same result at the same time each write a whole file; the last stays.
    """
    path = folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(io.BytesIO(read_sealed(path)), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError):
        pass  # absent or damaged
    start = time.perf_counter()
    arrays = build()
    if time.perf_counter() - start > WORTH_KEEPING:
        try:
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]  # all of them are arrays
            write_sealed(path, content.getbuffer())
        except OSError:
            pass  # no home, or no space: the next call builds again
    return arrays
