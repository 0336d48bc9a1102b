"""NMR shieldings of every atom of 465 organic molecules: the test sets published with QM9-NMR.

Gupta, Chakraborty, Ramakrishnan, Machine Learning: Science and Technology 2, 035010 (2021);
mPW1PW91/6-311+G(2d,p).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element

from matattn.datasets.molecules import Molecule, bond_distances, bonds, make_dataset
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset
from matattn.structures.metrics import linear_fit
from matattn.structures.structure import MAX_ATOMIC_NUMBER
from matattn.units import Property, find_properties

DELTAS = ("baseline", "increments")
SETS = ("GDB10to17", "12Drugs", "40Drugs", "PAH", "pyrimidinone")
SHELLS = 3  # bonds


def load(
    name: str,
    path: str,
    elements: Sequence[int] | None = None,
    delta: str | None = None,
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read isotropic shieldings, ppm, one for every atom.

    Args:
        name: what reports call the data.
        path: ``qm9nmr.json`` (symbols, pos in Å and sigma_ppm of every molecule), or the folder of
            the authors' files ``SI_<set>_DFT_NMR.txt``, ``SI_<set>_DFT_geo.xyz`` and, of the cheap
            method, ``SI_<set>_baseline_NMR.txt`` (shieldings) and ``_geo.xyz`` (PM7).
        elements: atomic numbers of the atoms whose shieldings are used; None: all.
        delta: learn the difference to a cheap method, whose own error is reported, too:
            "baseline", the cheap calculation of the authors' files, at its own cheap geometries;
            or "increments", a linear fit to the elements within three bonds, for files without it.
        split_seed: seed of the random split of the molecules.
        sizes: molecules of train, validation and test; None: 80/10/10 %.
        note: what errors on these rows may be compared with.

    Raises:
        DataError: if a file is missing or two files disagree.
    """
    if delta is not None and delta not in DELTAS:
        raise DataError(f"data.delta={delta!r}: choose one of {', '.join(DELTAS)}, or null")
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source}: no such file; set MATATTN_DATA to the folder of data sets")
    read = _read_folder(source, delta == "baseline") if source.is_dir() else _read_json(source)
    entries = list(read)
    used = list(elements or range(1, MAX_ATOMIC_NUMBER + 1))
    molecules = []
    for where, entry in entries:
        labels = np.where(np.isin(entry["z"], used)[:, None], entry["sigma"], np.nan)
        molecules.append((where, Molecule(entry["id"], entry["z"], entry["pos"], labels)))
    targets = find_properties(["nmr_shielding"])
    dataset = make_dataset(name, targets, "atom", molecules, split_seed, sizes, note)
    if delta is None:
        return replace(dataset, floors={"increments": increments(dataset)})
    if delta == "increments":
        return _difference(dataset, increments(dataset), delta)
    cheap = {entry["id"]: entry.get("cheap") for _, entry in entries}
    if any(value is None for value in cheap.values()):
        raise DataError(
            f"{source}: has no shieldings of a cheap method; give data.path=FOLDER with the "
            "authors' files SI_<set>_baseline_NMR.txt, or data.delta=increments"
        )
    return _difference(dataset, np.concatenate([cheap[i.id] for i in dataset.items]), delta)


def increments(dataset: PropertyDataset) -> np.ndarray:
    """Predict shieldings [n, 1] linear in the elements within three bonds of an atom.

    Each element has its own constants, fitted on the training atoms: an intercept, and an increment
    for every element at one, two and three bonds.
    """
    features, atomic_numbers, elements = [], [], np.array(dataset.elements(None))
    for item in dataset.items:
        z, pos = item.z.numpy(), item.pos.double().numpy()
        steps = bond_distances(bonds(z, pos))
        one_hot = (z[:, None] == elements).astype(float)
        shells = [(steps == number) @ one_hot for number in range(1, SHELLS + 1)]
        features.append(np.concatenate(shells, axis=1))
        atomic_numbers.append(z)
    x, z, labels = np.concatenate(features), np.concatenate(atomic_numbers), dataset.labels()[:, 0]
    predicted = np.full_like(labels, np.nanmean(labels[dataset.label_rows("train")]))
    train = np.zeros(len(labels), dtype=bool)
    train[dataset.label_rows("train")] = True
    for element in np.unique(z):
        rows = z == element
        fitted = rows & train & ~np.isnan(labels)
        if fitted.any():
            intercept, coefficients = linear_fit(x[fitted], labels[fitted])
            predicted[rows] = intercept + x[rows] @ coefficients
    return predicted[:, None]


def _difference(dataset: PropertyDataset, cheap: np.ndarray, delta: str) -> PropertyDataset:
    """Subtract the cheap method [n, 1] from the labels; its own prediction becomes zero."""
    for item, rows in zip(dataset.items, _parts(dataset, cheap), strict=True):
        item.y = (item.y.double() - rows).float()
    target = Property(f"nmr_shielding_minus_{delta}", "ppm")
    note = f"{dataset.note} Labels are differences to a cheap method ({delta})."
    floors = {delta: np.zeros_like(cheap)}
    return replace(dataset, targets=(target,), note=note, floors=floors)


def _parts(dataset: PropertyDataset, rows: np.ndarray) -> list[Any]:
    import torch

    return list(torch.from_numpy(rows).split([len(item.y) for item in dataset.items]))


def _read_json(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        for row in content:
            yield (
                f"{source} ({row['name']})",
                {
                    "id": str(row["name"]),
                    "z": [Element(symbol).Z for symbol in row["symbols"]],
                    "pos": np.array(row["pos"], dtype=np.float64),
                    "sigma": np.array(row["sigma_ppm"], dtype=np.float64),
                },
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: not the list of QM9-NMR molecules: {error!r}") from error


def _read_folder(folder: Path, cheap: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    names = [name for name in SETS if (folder / f"SI_{name}_DFT_NMR.txt").is_file()]
    if not names:
        raise DataError(f"{folder}: has none of the files SI_<set>_DFT_NMR.txt")
    for name in names:
        shieldings = _blocks(folder / f"SI_{name}_DFT_NMR.txt", 1)
        geometry_file = folder / f"SI_{name}_{'baseline' if cheap else 'DFT'}_geo.xyz"
        geometries = _blocks(geometry_file, 3)
        baseline_file = folder / f"SI_{name}_baseline_NMR.txt"
        baselines = _blocks(baseline_file, 1) if cheap else shieldings
        for identifier, (symbols, sigma) in shieldings.items():
            for file, blocks in ((geometry_file, geometries), (baseline_file, baselines)):
                if identifier not in blocks or blocks[identifier][0] != symbols:
                    raise DataError(f"{file}: {identifier} is missing or has other atoms")
            entry = {"id": identifier, "z": [Element(symbol).Z for symbol in symbols],
                     "pos": geometries[identifier][1], "sigma": sigma}  # fmt: skip
            if cheap:
                entry["cheap"] = baselines[identifier][1]
            yield f"{geometry_file} ({identifier})", entry


def _blocks(file: Path, columns: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Read symbols and numbers [N, columns] of every block of a file: count, name, then atoms."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    blocks, start = {}, 0
    try:
        while start < len(lines):
            if not lines[start]:
                start += 1
                continue
            end = start + 2 + int(lines[start][0])
            atoms = lines[start + 2 : end]
            values = np.array([atom[1 : 1 + columns] for atom in atoms], dtype=np.float64)
            blocks[lines[start + 1][0]] = [atom[0] for atom in atoms], values
            start = end
    except (ValueError, IndexError) as error:
        raise DataError(f"{file}:{start + 1}: expected a count, a name and atoms") from error
    return blocks
