"""JARVIS-DFT, and Materials Project 2018.6.1 as JARVIS serves it (``dft_3d_2021``, ``megnet``).

Choudhary et al., npj Computational Materials 6, 173 (2020). ``megnet`` is Materials Project
2018.6.1 as used by MEGNet (Chen et al., Chemistry of Materials 31, 3564, 2019). The files are those
that figshare serves: a JSON list, or a zip with one inside.
"""

from __future__ import annotations

import json
import math
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element

from matattn.datasets.structure_formats import find_files, read_rows
from matattn.datasets.structures_io import (
    Row,
    Rows,
    make_dataset,
    make_items,
    read_table,
    select_labels,
)
from matattn.download import present
from matattn.errors import DataError
from matattn.structures.dataset import SPLITS, PropertyDataset, check_sizes
from matattn.units import find_properties

# Targets of the digits in ``split_codes``.
_CODES = (
    "formation_energy_per_atom",
    "total_energy_per_atom",
    "energy_above_hull",
    "band_gap_opt",
    "band_gap_mbj",
    "log10_bulk_modulus",
    "log10_shear_modulus",
)


def load(
    name: str,
    path: str,
    targets: Sequence[str],
    sizes: Sequence[int] | None = None,
    split_seed: int = 123,
    max_sites: int | None = None,
    note: str = "",
    url: str = "",
    download: bool = False,
) -> PropertyDataset:
    """Read a JARVIS table with the community's split (ALIGNN, Matformer, Crystalformer).

    Rows that lack any of the targets are dropped first. Then the row numbers are shuffled by
    Python's generator with ``split_seed``; train is taken from the front, test from the end and
    val before it. Without ``sizes`` the parts are 80/10/10, and ``note``, which is about the
    benchmark, does not apply. With ``download`` an absent file is fetched from ``url``.

    Raises DataError when the file or a target is missing or the sizes differ.
    """
    file = present(path, url, f"python train.py data={name} data.download=true", download)
    table = read_table(path, [file], lambda: read_entries(file))
    rows, labels, properties, skipped = select_labels(path, table, targets, max_sites=max_sites)
    complete = ~np.isnan(labels).any(axis=1)
    rows, labels = rows[complete], labels[complete]
    split = community_split(len(rows), sizes, split_seed)
    check_sizes(path, split, sizes)
    if sizes is None:
        note = "not the rows of a published benchmark: not comparable with published errors."
    items = make_items(table, rows, labels)
    return PropertyDataset(name, properties, items, split, note, [*table.skipped, *skipped])


def load_subset(
    name: str,
    path: str,
    targets: Sequence[str],
    split: str = "official",
    split_seed: int = 0,
    max_sites: int | None = None,
    units: Mapping[str, str] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read rows of JARVIS-DFT 3D 2021 from JSON lines with the official split in ``split_codes``.

    The column has one digit per target (0 train, 1 val, 2 test, - none), since every property was
    split on its own; "official" is the split of the first target. The other arguments are those of
    ``matattn.datasets.crystals.load``.
    """
    file = Path(path)
    table = read_table(path, find_files(file), lambda: read_rows(file))
    if split == "official":
        first = find_properties(targets, units)[0].name
        if first not in _CODES:
            raise DataError(
                f"{path}: {first} has no official split; use data.split=random or "
                "data.split=formula"
            )
        codes = table.columns.get("split_codes", [""] * len(table.ids))
        index = _CODES.index(first)
        table.columns["split"] = [_split_of(str(code or "")[index : index + 1]) for code in codes]
    return make_dataset(name, path, table, targets, split, split_seed, None, max_sites, units, note)


def _split_of(digit: str) -> str | None:
    return SPLITS[int(digit)] if digit in ("0", "1", "2") else None


def community_split(count: int, sizes: Sequence[int] | None, seed: int = 123) -> np.ndarray:
    """Return the split of ``count`` rows as ALIGNN draws it."""
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


def read_entries(path: Path) -> Rows:
    """Read all entries of an official file as rows of ``matattn.datasets.structures_io``."""
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
    rows, skipped = [], []
    for number, entry in enumerate(entries):
        identifier = entry.get("jid", entry.get("id", number))
        where = f"{path}, entry {number} ({identifier})"
        try:
            rows.append((where, {"id": identifier} | numbers(entry) | structure(entry["atoms"])))
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            skipped.append(f"{where}: bad or missing value: {error}")
    return rows, skipped


def structure(atoms: dict[str, Any]) -> Row:
    """Convert JARVIS's ``atoms`` to the structure part of a row."""
    lattice = np.array(atoms["lattice_mat"], dtype=float)
    coords = np.array(atoms["coords"], dtype=float)
    frac = coords @ np.linalg.inv(lattice) if atoms["cartesian"] else coords
    z = [Element(symbol.strip()).Z for symbol in atoms["elements"]]
    return {"Z": z, "frac": frac, "lattice": lattice}


def numbers(entry: dict[str, Any]) -> Row:
    """Return the properties of an entry; "na" and other texts are missing values."""
    return {
        key: float(value) if isinstance(value, int | float) else math.nan
        for key, value in entry.items()
        if key not in ("atoms", "jid", "id")
    }
