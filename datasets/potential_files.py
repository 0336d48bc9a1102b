"""Energies, forces and stresses from files: extended XYZ, ASE's databases, VASP's vasprun.xml.

ASE reads them. Its units and signs hold: eV, eV/Å, eV/Å^3, stress positive under tension, energies
of the whole cell. What cannot be told from one frame is checked over all of them.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from matattn.errors import DataError
from matattn.extras import import_extra
from matattn.potentials.checks import check_frame, doubts_of
from matattn.potentials.dataset import VOIGT, Frame, PotentialDataset
from matattn.structures.dataset import SPLITS, random_split
from matattn.structures.formats.ase_files import open_database

# ASE's names of the formats: where it guesses by content, it may open a pickle.
FILES = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "db", ".json": "json", ".traj": "traj",
         ".xml": "vasp-xml"}  # fmt: skip


def load(
    name: str,
    path: str | Sequence[str],
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    group_key: str = "group",
    split: str = "random",
    split_seed: int = 0,
    note: str = "",
) -> PotentialDataset:
    """Read one or more files or folders of structures with energies, forces and stresses.

    ``path`` is one, or several. A key names the entry of extended XYZ that has the labels, as
    REF_energy; without keys those with ``REF_`` come first, then what ASE knows as the results of a
    calculation. Labels that a row lacks are unknown. ``split`` is "random" (by seed; frames of one
    trajectory are alike, so that errors of a random split are too small), or "official": the key
    ``split`` of each frame.

    Raises DataError for files that cannot be read, frames without any label, and labels that cannot
    be what they are said to be (``matattn.potentials.checks``).
    """
    paths = [path] if isinstance(path, str) else list(path)
    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    frames, splits = [], []
    for file in (file for one in paths for file in _files(Path(one))):
        for number, atoms in enumerate(_read(file)):
            where = f"{file}, frame {number + 1}"
            frame = to_frame(atoms, f"{file.name}:{number + 1}", where, keys, group_key)
            frames.append(frame)
            splits.append(str(atoms.info.get("split", "")))
    if not frames:
        raise DataError(f"{', '.join(paths)}: no structures")
    return PotentialDataset(
        name, frames, _split(split, split_seed, splits, name), note, doubts_of(frames)
    )


def load_official(
    name: str,
    folder: str,
    files: Mapping[str, tuple[str, str | None]],
    val: float,
    split_seed: int,
    note: str,
) -> PotentialDataset:
    """Read files of a folder that have official splits.

    ``files`` are split and group by name; without a group frames keep their own. ``val`` is the
    share of the training rows, lone atoms apart, that become validation rows. Raises DataError.
    """
    if not 0 <= val < 1:
        raise DataError(f"data.val={val!r}: expected a share of the training rows, 0 to below 1")
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; set MATATTN_DATA, or data.path, to the data")
    frames: list[Frame] = []
    splits: list[str] = []
    doubts: list[str] = []
    for file, (of_file, group) in files.items():
        read = load(name, str(Path(folder) / file))
        frames += [replace(f, group=f.group if group is None else group) for f in read.frames]
        splits += [of_file] * len(read.frames)
        doubts += read.doubts
    split = np.array(splits, dtype="<U5")
    train = [row for row in np.flatnonzero(split == "train") if not frames[row].is_lone_atom]
    drawn = np.random.default_rng(split_seed).permutation(train)
    split[drawn[: round(val * len(train))]] = "val"
    return PotentialDataset(name, frames, split, note, doubts)


def to_frame(
    atoms: Any, identifier: str, where: str, keys: dict[str, str | None], group_key: str = "group"
) -> Frame:
    """Return ASE's atoms as a checked frame; raises DataError, beginning with ``where``."""
    energy = _label(atoms, "energy", keys["energy"], where)
    forces = _label(atoms, "forces", keys["forces"], where)
    stress = _label(atoms, "stress", keys["stress"], where)
    frame = Frame(
        id=identifier,
        z=atoms.numbers.astype(np.int64),
        pos=atoms.positions.copy(),
        cell=_cell(atoms, where),
        energy=np.nan if energy is None else _number(energy, f"{where}: energy"),
        forces=np.full((len(atoms), 3), np.nan) if forces is None
        else _array(forces, (len(atoms), 3), f"{where}: forces"),
        stress=np.full((3, 3), np.nan) if stress is None else _matrix(stress, where),
        group=str(atoms.info.get(group_key, "")),
    )  # fmt: skip
    check_frame(frame, where)
    return frame


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if _suffix(p) in FILES)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    if _suffix(path) not in FILES:
        raise DataError(f"{path}: expected one of {', '.join(FILES)}, or one of these with .gz")
    return [path]


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _read(path: Path) -> Iterator[Any]:
    """Yield the structures of a file; raises DataError."""
    ase_io = import_extra("ase.io")
    form = FILES[_suffix(path)]
    source: Any = str(path)
    try:
        if form == "db":
            yield from (row.toatoms() for row in open_database(path).select(include_data=False))
            return
        if path.name.endswith(".gz"):
            source = io.StringIO(gzip.decompress(path.read_bytes()).decode())
        yield from ase_io.iread(source, index=":", format=form)
    except DataError:
        raise
    except Exception as error:  # whatever a reader says of a bad file
        raise DataError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def _label(atoms: Any, name: str, key: str | None, where: str) -> Any:
    """Return a label under its key, under ``REF_`` and its name, or as ASE's result."""
    held = {**atoms.arrays, **atoms.info}
    if key is not None:
        if key not in held:
            known = ", ".join(sorted(held))
            raise DataError(f"{where}: has no {key!r} (data.{name}_key); its keys: {known}")
        return held[key]
    if f"REF_{name}" in held:
        return held[f"REF_{name}"]
    results = atoms.calc.results if atoms.calc is not None else {}
    return results.get(name, held.get(name))


def _cell(atoms: Any, where: str) -> np.ndarray:
    """Return the cell [3, 3] of a crystal, or zeros of a molecule."""
    if not atoms.pbc.any():
        return np.zeros((3, 3))
    if not atoms.pbc.all():
        raise DataError(
            f"{where}: is periodic in some directions only; give it a cell with vacuum and "
            'pbc="T T T"'
        )
    cell = np.array(atoms.cell)
    if abs(np.linalg.det(cell)) < 1e-3:
        raise DataError(f"{where}: is periodic, and its cell has no volume")
    return cell


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{what} is {value!r}, expected a number") from None


def _array(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} are no numbers") from None
    if array.shape != shape:
        raise DataError(f"{what} have the shape {array.shape}, expected {shape}")
    return array


def _matrix(stress: Any, where: str) -> np.ndarray:
    """Return a stress as a symmetric matrix; six numbers are in ASE's order xx yy zz yz xz xy."""
    values = np.asarray(stress, dtype=np.float64)
    if values.shape == (6,):
        matrix = np.empty((3, 3))
        matrix[VOIGT], matrix[VOIGT[::-1]] = values, values
        return matrix
    if values.size != 9:
        raise DataError(f"{where}: stress has {values.size} numbers, expected 6 or 9")
    return values.reshape(3, 3)


def _split(split: str, seed: int, given: Sequence[str], name: str) -> np.ndarray:
    if split == "random":
        return random_split(len(given), seed)
    if split != "official":
        raise DataError(f"data.split={split!r}: choose random or official")
    if unknown := set(given) - {*SPLITS, ""}:
        raise DataError(
            f"{name}: split is {', '.join(sorted(unknown))} in some frames; use train, val, test"
        )
    return np.array(given, dtype="<U5")
