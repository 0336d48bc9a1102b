"""Scalar couplings of pairs of nuclei: the CHAMPS competition, and a small computed sample."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pymatgen.core import Element

from matattn.datasets.molecules import (
    Molecule,
    bond_distances,
    bonds,
    make_dataset,
    means_by_type,
)
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset
from matattn.units import find_properties

Entries = Iterator[tuple[str, Molecule, list[str]]]  # location, molecule, type of every pair


def load_sample(
    name: str,
    path: str,
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read couplings, Hz, of all pairs of 48 molecules of QM7 (B3LYP/6-31G).

    ``path`` is a JSON list with z, pos (Å), converged and J_hz [N, N] of every molecule. The split
    and ``sizes`` are of molecules, as in ``load_champs``. Raises DataError when the file is missing
    or has another format.
    """
    return _load(name, _sample(Path(path)), split_seed, sizes, note)


def load_champs(
    name: str,
    path: str,
    types: Sequence[str] | None = None,
    molecules: int | None = None,
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read the couplings, Hz, of the CHAMPS competition "Predicting Molecular Properties".

    Args:
        name: what reports call the data.
        path: the folder with Kaggle's ``train.csv`` and ``structures.csv``: 85,003 molecules.
        types: types of couplings to read, for example ["1JHC", "2JHH"]; None: all eight.
        molecules: number of molecules to read, from the start of the file; None: all.
        split_seed: seed of the random split of the molecules.
        sizes: molecules of train, validation and test; None: 80/10/10 %. Kaggle's test rows have
            no published labels.
        note: what errors on these rows may be compared with.

    Raises:
        DataError: if a file or a column is missing.
    """
    return _load(name, _champs(Path(path), types, molecules), split_seed, sizes, note)


def _load(
    name: str, entries: Entries, split_seed: int, sizes: Sequence[int] | None, note: str
) -> PropertyDataset:
    molecules: list[tuple[str, Molecule]] = []
    types_by_id: dict[str, list[str]] = {}
    for where, molecule, types in entries:
        molecules.append((where, molecule))
        types_by_id[molecule.id] = types
    targets = find_properties(["scalar_coupling"])
    dataset = make_dataset(name, targets, "pair", molecules, split_seed, sizes, note)
    types = [kind for item in dataset.items for kind in types_by_id[item.id]]
    return replace(dataset, floors={"type_of_coupling": means_by_type(dataset, types)})


def _sample(file: Path) -> Entries:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for row in content:
            if not row["converged"]:
                continue
            z, pos = row["z"], np.array(row["pos"], dtype=np.float64)
            i, j = np.triu_indices(len(z), 1)
            steps = bond_distances(bonds(z, pos))
            names = [Element.from_Z(number).symbol for number in z]
            types = [
                f"{steps[a, b]}J" + "".join(sorted((names[a], names[b])))
                for a, b in zip(i, j, strict=True)
            ]
            labels = np.array(row["J_hz"], dtype=np.float64)[i, j][:, None]
            molecule = Molecule(str(row["name"]), z, pos, labels, np.stack([i, j]))
            yield f"{file} ({molecule.id})", molecule, types
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{file}: not a JSON list of molecules with J_hz: {error!r}") from error


def _champs(folder: Path, types: Sequence[str] | None, limit: int | None) -> Entries:
    couplings: dict[str, list[tuple[int, int, str, float]]] = defaultdict(list)
    for row in _rows(
        folder / "train.csv",
        ("molecule_name", "atom_index_0", "atom_index_1", "type", "scalar_coupling_constant"),
    ):
        name, i, j, kind, value = row
        if limit is not None and name not in couplings and len(couplings) == limit:
            break
        if types is None or kind in types:
            couplings[name].append((int(i), int(j), kind, float(value)))
    atoms: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, *atom in _rows(
        folder / "structures.csv", ("molecule_name", "atom_index", "atom", "x", "y", "z")
    ):
        if name in couplings:
            atoms[name].append(tuple(atom))
    for name, rows in couplings.items():
        ordered = sorted(atoms[name], key=lambda atom: int(atom[0]))
        z = [Element(atom[1]).Z for atom in ordered]
        pos = np.array([atom[2:] for atom in ordered], dtype=np.float64).reshape(-1, 3)
        pairs = np.array([row[:2] for row in rows]).T
        labels = np.array([row[3] for row in rows])[:, None]
        yield f"{folder} ({name})", Molecule(name, z, pos, labels, pairs), [row[2] for row in rows]


def _rows(file: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the ``columns`` of every line of a CSV file."""
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            reader = csv.reader(lines)
            header = next(reader, [])
            if missing := [name for name in columns if name not in header]:
                raise DataError(f"{file}: lacks the columns {', '.join(missing)}")
            indices = [header.index(name) for name in columns]
            for row in reader:
                yield [row[index] for index in indices]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); download it from Kaggle, "
            "https://www.kaggle.com/c/champs-scalar-coupling/data"
        ) from error
