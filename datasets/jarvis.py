"""Benchmark tables in the format of JARVIS (jarvis-tools): ``dft_3d_2021`` and ``megnet``.

Choudhary et al., npj Computational Materials 6, 173 (2020). ``megnet`` is Materials Project
2018.6.1 as used by MEGNet (Chen et al., Chemistry of Materials 31, 3564, 2019). The files are those
that figshare serves: a JSON list, or a zip with one inside.
"""

from __future__ import annotations

import json
import math
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element

from matattn.dataset import PropertyDataset
from matattn.datasets.crystals import Row, check_sizes, from_rows
from matattn.errors import DataError


def load(
    name: str,
    path: str,
    targets: Sequence[str],
    sizes: Sequence[int] | None = None,
    split_seed: int = 123,
    max_sites: int | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read a JARVIS table with the community's split (ALIGNN, Matformer, Crystalformer).

    Rows that lack any of the targets are dropped first. Then the row numbers are shuffled by
    Python's generator with ``split_seed``; train is taken from the front, test from the end and
    val before it. Without ``sizes`` the parts are 80/10/10
    and ``note``, which speaks of the benchmark, does not apply.

    Raises DataError when the file or a target is missing or the sizes do not come out.
    """
    skipped: list[str] = []
    rows = _read_table(Path(path), skipped)
    items, _, properties = from_rows(path, rows, skipped, targets, max_sites=max_sites)
    items = [item for item in items if not item.y.isnan().any()]
    split = community_split(len(items), sizes, split_seed)
    check_sizes(path, split, sizes)
    if sizes is None:
        note = "not the rows of a published benchmark: not comparable with published errors."
    return PropertyDataset(name, properties, items, split, note, skipped)


def community_split(count: int, sizes: Sequence[int] | None, seed: int = 123) -> np.ndarray:
    """The split of ``count`` rows as ALIGNN draws it."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    if sizes is None:
        sizes = [int(0.8 * count), int(0.1 * count), int(0.1 * count)]
    train, val, test = sizes
    split = np.full(count, "", dtype="<U5")
    if train + val + test <= count:
        split[order[:train]] = "train"
        split[order[count - val - test : count - test]] = "val"
        split[order[count - test :]] = "test"
    return split


def _read_table(path: Path, skipped: list[str]) -> list[tuple[str, Row]]:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; put the official file there, or set MATATTN_DATA (docs/data.md)"
        )
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                entries = json.loads(archive.read(archive.namelist()[0]))
        else:
            entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: not a list of JSON objects")
    rows = []
    for number, entry in enumerate(entries):
        identifier = entry.get("jid", entry.get("id", number))
        where = f"{path}, entry {number} ({identifier})"
        try:
            rows.append((where, _row(identifier, entry)))
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            skipped.append(f"{where}: bad or missing value: {error}")
    return rows


def _row(identifier: Any, entry: dict[str, Any]) -> Row:
    """An entry in the form of ``matattn.datasets.crystals``; "na" and other texts are missing."""
    atoms = entry["atoms"]
    lattice = np.array(atoms["lattice_mat"], dtype=float)
    coords = np.array(atoms["coords"], dtype=float)
    frac = coords @ np.linalg.inv(lattice) if atoms["cartesian"] else coords
    z = [Element(symbol.strip()).Z for symbol in atoms["elements"]]
    numbers = {
        key: float(value) if isinstance(value, int | float) else math.nan
        for key, value in entry.items()
        if key not in ("atoms", "jid", "id")
    }
    return {**numbers, "id": identifier, "Z": z, "frac": frac, "lattice": lattice}
