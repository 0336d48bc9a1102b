"""What the loaders of molecules share: values of molecules, atoms or pairs, splits and bonds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from matattn.datasets import structures_io
from matattn.errors import DataError, StructureError
from matattn.structures.covalent_radii import covalent_radii
from matattn.structures.dataset import PropertyDataset, random_split
from matattn.structures.structure import tensors_from_arrays, to_data, validate_arrays
from matattn.units import Property

_BOND = 1.25  # longest bond, in units of the sum of the covalent radii


@dataclass(frozen=True)
class Molecule:
    """One molecule: ``labels`` [rows, T] of its atoms, or of its ``pairs`` [2, P]."""

    id: str
    z: Sequence[int]
    pos: np.ndarray  # [N, 3] Å
    labels: np.ndarray
    pairs: np.ndarray | None = None


def make_dataset(
    name: str,
    targets: tuple[Property, ...],
    level: str,
    molecules: Iterable[tuple[str, Molecule]],
    split_seed: int,
    sizes: Sequence[int] | None = None,
    note: str = "",
    skipped: Sequence[str] = (),
) -> PropertyDataset:
    """Make the data set of (location, molecule) pairs, with a random split of the molecules.

    ``level`` is "atom" or "pair". Molecules that are not physical are left out. Raises DataError
    when ``sizes`` (see ``sized_split``) are too large or no molecule is left.
    """
    items, left_out = [], list(skipped)
    for where, molecule in molecules:
        try:
            validate_arrays(molecule.z, molecule.pos, None, where)
            rows = len(molecule.z) if molecule.pairs is None else molecule.pairs.shape[1]
            if (count := len(molecule.labels)) != rows:
                raise StructureError(f"{where}: has {count} values for {rows} {level}s")
        except StructureError as error:
            left_out.append(str(error))
            continue
        item = to_data(tensors_from_arrays(molecule.z, molecule.pos, None), (), molecule.id)
        item.y = torch.tensor(molecule.labels, dtype=torch.float32)
        if molecule.pairs is not None:
            item.pair_index = torch.as_tensor(molecule.pairs, dtype=torch.long)
        items.append(item)
    split = sized_split(name, len(items), split_seed, sizes)
    text = _split_note(note, "molecules", split_seed)
    return PropertyDataset(name, targets, items, split, text, left_out, level)


def split_table(
    name: str,
    file: Path,
    table: structures_io.Table,
    targets: Sequence[str],
    split_seed: int,
    sizes: Sequence[int] | None,
    note: str,
    rows: str = "molecules",
) -> PropertyDataset:
    """Make the data set of the table of ``file``, with a random split of its ``rows``.

    Raises DataError when ``sizes`` (see ``sized_split``) are too large or a target is missing.
    """
    split = sized_split(str(file), len(table.ids), split_seed, sizes)
    text = _split_note(note, rows, split_seed)
    return structures_io.make_dataset(name, str(file), table, targets, split, note=text)


def _split_note(note: str, rows: str, seed: int) -> str:
    return f"{note} Random split of the {rows}, seed {seed}.".strip()


def sized_split(
    source: str, count: int, seed: int, sizes: Sequence[int] | None = None
) -> np.ndarray:
    """Draw a seeded split of ``count`` rows into ``sizes`` of train, val and test.

    None means 80/10/10 %. Rows beyond the sizes are not used. Raises DataError when the sizes are
    too large.
    """
    if sizes is None:
        return random_split(count, seed)
    if sum(sizes) > count:
        raise DataError(
            f"{source}: has {count} rows, data.sizes={list(sizes)} needs {sum(sizes)}; give "
            "smaller ones, or null for 80/10/10 %"
        )
    split = np.full(count, "", dtype="<U5")
    order = np.random.default_rng(seed).permutation(count)
    for name, rows in zip(
        ("train", "val", "test"), np.split(order, np.cumsum(sizes))[:3], strict=True
    ):
        split[rows] = name
    return split


def bonds(z: Sequence[int], pos: np.ndarray) -> np.ndarray:
    """Tell which atoms are bonded [N, N] (bool), by covalent radii."""
    radii = covalent_radii()[np.asarray(z)]
    distance = np.linalg.norm(pos[:, None] - pos[None], axis=-1)
    return (distance < _BOND * (radii[:, None] + radii)) & ~np.eye(len(radii), dtype=bool)


def bond_distances(bonded: np.ndarray) -> np.ndarray:
    """Return the smallest number of bonds between atoms [N, N]; -1 where no path joins them."""
    steps = np.where(np.eye(len(bonded), dtype=bool), 0, -1)
    reached = np.eye(len(bonded), dtype=bool)
    for number in range(1, len(bonded)):
        shell = (reached @ bonded) & ~reached
        if not shell.any():
            break
        steps[shell] = number
        reached |= shell
    return steps


def means_by_type(dataset: PropertyDataset, types: Sequence[Hashable]) -> np.ndarray:
    """Predict each row of the labels [n, T] as the mean of the training rows of its type.

    A type without training rows gets the mean of all training rows.
    """
    labels = dataset.labels()
    rows_by_type: dict[Hashable, list[int]] = {}
    for row in dataset.label_rows("train"):
        rows_by_type.setdefault(types[row], []).append(row)
    overall = np.nanmean(labels[dataset.label_rows("train")], axis=0)
    means = {kind: np.nanmean(labels[rows], axis=0) for kind, rows in rows_by_type.items()}
    return np.array([means.get(kind, overall) for kind in types], dtype=np.float64)
