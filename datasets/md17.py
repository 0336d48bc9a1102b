"""Energies along the molecular dynamics of one molecule: MD17, its revision, and extended XYZ.

Chmiela et al., Science Advances 3, e1603015 (2017); Christensen and von Lilienfeld,
Machine Learning: Science and Technology 1, 045018 (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matattn.datasets.molecules import split_table
from matattn.datasets.structure_formats import read_rows
from matattn.datasets.structures_io import BESIDE, Row, Rows, read_table
from matattn.download import present
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset

URL = "http://quantum-machine.org/gdml/data/npz/md17_{}.npz"
# The names of atomic numbers, positions and energies in MD17 and in its revision.
_NAMES = (("z", "R", "E"), ("nuclear_charges", "coords", "energies"))


def load(
    name: str,
    path: str,
    molecule: str = "ethanol",
    targets: Sequence[str] = ("potential_energy",),
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    download: bool = False,
    note: str = "",
) -> PropertyDataset:
    """Read the energies, kcal/mol, of the frames of a trajectory.

    Args:
        name: what reports call the data.
        path: ``.npz`` of MD17 or of its revision, or extended XYZ with ``energy`` (kcal/mol).
        molecule: the one to download, for example "ethanol".
        targets: potential_energy.
        split_seed: seed of the random split of the frames.
        sizes: frames of train, validation and test (usual: 950, 50, the rest); None: 80/10/10 %.
        download: fetch MD17 if the file is absent.
        note: what errors on these rows may be compared with.

    Raises:
        DataError: if the file is missing or has another format.
    """
    file = Path(path)
    if file.suffix == ".npz":
        command = f"python train.py data={name} data.molecule={molecule} data.download=true"
        file = present(file, URL.format(molecule), command, download)
    elif not file.is_file():
        raise DataError(f"{file}: no such file; give data.path=FILE.npz or FILE.extxyz")
    table = read_table(str(file), [file], lambda: _read(file))
    return split_table(name, file, table, targets, split_seed, sizes, note, rows="frames")


def _read(file: Path) -> Rows:
    if file.suffix != ".npz":
        rows, bad = read_rows(file)
        return map(_with_our_name, rows), bad
    try:
        with np.load(file, allow_pickle=False) as content:
            names = next((n for n in _NAMES if all(key in content for key in n)), None)
            if names is None:
                raise DataError(f"{file}: expected the keys {' or '.join(map(', '.join, _NAMES))}")
            z, pos, energy = (content[key] for key in names)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    frames = enumerate(zip(pos, energy.ravel(), strict=True), start=1)
    return [
        (f"{file}, frame {n}", {"id": f"{n}", "Z": z, "pos": p, "potential_energy": float(e)})
        for n, (p, e) in frames
    ], []


def _with_our_name(located: tuple[str, Row]) -> tuple[str, Row]:
    where, row = located
    values = row.get(BESIDE, row)
    values["potential_energy"] = values.pop("energy", None)
    return where, row
