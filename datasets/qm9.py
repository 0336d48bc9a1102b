"""QM9: 133,885 organic molecules of up to nine heavy atoms, with 15 properties.

Ramakrishnan, Dral, Rupp, von Lilienfeld, Scientific Data 1, 140022 (2014); B3LYP/6-31G(2df,p).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pymatgen.core import Element

from matattn.datasets.molecules import split_table
from matattn.datasets.structure_formats import read_rows
from matattn.datasets.structures_io import BESIDE, Row, Rows, read_table
from matattn.download import present
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset

URL = "https://ndownloader.figshare.com/files/3195389"
# The second line of an official file, in this order after its number; and keys of extended XYZ.
COLUMNS = {
    "rotational_constant_A": "A", "rotational_constant_B": "B", "rotational_constant_C": "C",
    "dipole_moment": "mu", "polarizability": "alpha", "homo": "epsHOMO", "lumo": "epsLUMO",
    "homo_lumo_gap": "epsgap", "electronic_spatial_extent": "<R2>", "zero_point_energy": "zpve",
    "internal_energy_0K": "U0", "internal_energy": "U", "enthalpy": "H", "free_energy": "G",
    "heat_capacity": "Cv",
}  # fmt: skip


def load(
    name: str,
    path: str,
    targets: Sequence[str] = ("homo_lumo_gap",),
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    excluded: str | None = None,
    download: bool = False,
    note: str = "",
) -> PropertyDataset:
    """Read QM9.

    Args:
        name: what reports call the data.
        path: the official ``dsgdb9nsd.xyz.tar.bz2``, or extended XYZ with the keys of ``COLUMNS``.
        targets: energies and gap in Ha, dipole_moment D, polarizability a0^3,
            electronic_spatial_extent a0^2, heat_capacity cal/mol/K.
        split_seed: seed of the random split of the molecules.
        sizes: molecules of train, validation and test (usual: 110,000, 10,000, the rest);
            None: 80/10/10 %.
        excluded: the official ``uncharacterized.txt``, whose 3,054 molecules are left out.
        download: fetch the archive if it is absent.
        note: what errors on these rows may be compared with.

    Raises:
        DataError: if a file is missing or has another format.
    """
    file = Path(path)
    if file.name.endswith(".tar.bz2"):
        file = present(file, URL, f"python train.py data={name} data.download=true", download)
    elif not file.is_file():
        raise DataError(f"{file}: no such file; data.path=dsgdb9nsd.xyz.tar.bz2, or extended XYZ")
    files = [file, Path(excluded)] if excluded else [file]
    table = read_table(str(file), files, lambda: _read(file, _numbers(excluded)))
    return split_table(name, file, table, targets, split_seed, sizes, note)


def _numbers(excluded: str | None) -> set[str]:
    """Return the ids of the molecules that ``uncharacterized.txt`` lists."""
    if excluded is None:
        return set()
    try:
        lines = Path(excluded).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{excluded}: cannot be read: {error}") from error
    first = (line.split()[0] for line in lines if line.strip())
    return {f"gdb_{number}" for number in first if number.isdigit()}


def _read(file: Path, excluded: set[str]) -> Rows:
    if file.name.endswith(".tar.bz2"):
        return _kept(_archive(file), excluded), []
    rows, bad = read_rows(file)
    return _kept(map(_with_our_names, rows), excluded), bad


def _kept(rows: Iterable[tuple[str, Row]], excluded: set[str]) -> Iterator[tuple[str, Row]]:
    return ((where, row) for where, row in rows if row["id"] not in excluded)


def _with_our_names(located: tuple[str, Row]) -> tuple[str, Row]:
    where, row = located
    values = row.get(BESIDE, row)
    values |= {name: values.pop(key) for name, key in COLUMNS.items() if key in values}
    return where, row


def _archive(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                if content := archive.extractfile(member):
                    yield f"{file}, {member.name}", parse(content.read().decode())
    except (OSError, EOFError, tarfile.TarError, ValueError, IndexError) as error:
        raise DataError(f"{file}: not the archive of QM9: {error}") from error


def parse(text: str) -> Row:
    """Read the row of one official file: count, tag with number and properties, then atoms.

    The frequencies, SMILES and InChI after the atoms are not read.
    """
    lines = text.splitlines()
    count, (tag, number, *values) = int(lines[0]), lines[1].split()
    atoms = [line.replace("*^", "e").split() for line in lines[2 : 2 + count]]
    row = {"id": f"{tag}_{number}", "Z": [Element(atom[0]).Z for atom in atoms]}
    row["pos"] = [[float(x) for x in atom[1:4]] for atom in atoms]
    return row | dict(zip(COLUMNS, map(float, values), strict=True))
