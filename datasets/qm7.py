"""QM7: small organic molecules (H, C, N, O, S) with their energies.

Blum and Reymond, JACS 131, 8732 (2009); Rupp, Tkatchenko, Müller, von Lilienfeld, PRL 108, 058301
(2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matattn.datasets.molecules import split_table
from matattn.datasets.structures_io import Rows, read_table
from matattn.download import present
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset

URL = "http://quantum-machine.org/data/qm7.mat"
_BOHR = 0.529177210903  # Å
_KEYS = {
    ".npz": ("name", "z", "pos", "n_atoms", "heat_of_formation_kcal_mol"),
    ".mat": ("R", "Z", "T"),
}


def load(
    name: str,
    path: str,
    targets: Sequence[str] = ("heat_of_formation",),
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    download: bool = False,
    note: str = "",
) -> PropertyDataset:
    """Read QM7.

    Args:
        name: what reports call the data.
        path: ``qm7.npz`` (heat_of_formation, kcal/mol, PBE0/def2-TZVP; z and pos of all molecules
            in one list, and n_atoms of each) or the official ``qm7.mat`` (atomization_energy,
            kcal/mol, PBE0; positions in Bohr).
        targets: properties of the file to predict.
        split_seed: seed of the random split of the molecules.
        sizes: molecules of train, validation and test; None: 80/10/10 %.
        download: fetch ``qm7.mat`` if it is absent.
        note: what errors on these rows may be compared with.

    Raises:
        DataError: if the file is missing or has another format.
    """
    file = Path(path)
    if file.suffix == ".mat":
        file = present(file, URL, f"python train.py data={name} data.download=true", download)
    elif not file.is_file():
        raise DataError(
            f"{file}: no such file; set MATATTN_DATA to the folder of data sets, or use the "
            "official one: data.path=qm7.mat 'data.targets=[atomization_energy]' data.sizes=null "
            "data.download=true"
        )
    table = read_table(str(file), [file], lambda: _read(file))
    return split_table(name, file, table, targets, split_seed, sizes, note)


def _read(file: Path) -> Rows:
    if (keys := _KEYS.get(file.suffix)) is None:
        raise DataError(f"{file}: expected qm7.npz or qm7.mat")
    arrays = _arrays(file)
    if missing := [key for key in keys if key not in arrays]:
        raise DataError(f"{file}: lacks {', '.join(missing)}; is it QM7?")
    rows = []
    if file.suffix == ".npz":
        ends = np.cumsum(arrays["n_atoms"])
        for end, count, identifier, energy in zip(
            ends, *(arrays[key] for key in ("n_atoms", "name", keys[-1])), strict=True
        ):
            atoms = slice(end - count, end)
            row = {"id": str(identifier), "Z": arrays["z"][atoms], "pos": arrays["pos"][atoms]}
            rows.append((f"{file} ({identifier})", row | {keys[-1]: float(energy)}))
        return rows, []
    for number, (z, pos, energy) in enumerate(
        zip(arrays["Z"], arrays["R"], arrays["T"].ravel(), strict=True), start=1
    ):
        real = z > 0  # the rest is padding
        row = {"id": f"{number:04d}", "Z": z[real].astype(int), "pos": _BOHR * pos[real]}
        rows.append((f"{file}, molecule {number}", row | {"atomization_energy": float(energy)}))
    return rows, []


def _arrays(file: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        if file.suffix == ".mat":
            return loadmat(file)
        with np.load(file, allow_pickle=False) as content:
            return dict(content)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
