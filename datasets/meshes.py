"""The user's own meshes: one file per sample, all with the same fields at their nodes.

``matattn.meshes.files`` reads the files: VTU, VTK and other formats of meshio, and .npz.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from matattn.errors import DataError
from matattn.meshes.fields import SCALINGS, Field, FieldDataset, MeshSample
from matattn.meshes.files import SUFFIXES, mesh_files, mesh_name, read_mesh
from matattn.structures.dataset import SPLITS, check_sizes, random_split


def load(
    name: str,
    path: str | Sequence[str],
    targets: Sequence[str],
    inputs: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    scaling: Mapping[str, str | float] | None = None,
    split: str | None = None,
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    note: str = "",
) -> FieldDataset:
    """Read all meshes of a folder and its sub-folders.

    Args:
        name: what reports call the data.
        path: the folder, or a list of files; an id is a file's path in it without the suffix.
        targets: fields to predict; ``displacement_z`` is a component of the vector displacement.
        inputs: fields that the network sees beside the coordinates.
        units: units of fields and of the coordinates x, y, z, if any; numbers stay as in the files.
        scaling: how the network sees inputs and coordinates (see ``matattn.meshes.fields.Field``).
        split: "official" (``split.csv`` in the folder with the columns id and split, or
            sub-folders train, val, test), or "random" (seeded 80/10/10 of the files); None:
            official if the folder has either, else random.
        split_seed: seed of the random split.
        sizes: samples that train, val and test must have.
        note: what errors on these meshes may be compared with; the split is added to it.

    Files that cannot be used are left out and listed in ``skipped``. All meshes are plane or all
    are spatial, as most files are.

    Raises:
        DataError: if there is no mesh file or none that can be used, if a unit or scaling belongs
            to no field, or if the split cannot be made.
    """
    if not path:
        raise DataError("data.path is empty; give data.path=FOLDER, a folder of mesh files")
    targets, inputs = _names(targets), _names(inputs)
    root, files, skipped = _find(path)
    if split not in (None, "official", "random"):
        raise DataError(f"data.split={split!r}: choose official or random")
    official = _official_split(root, list(files), skipped) if split != "random" else None
    if official is None and split == "official":
        raise DataError(
            f"{root}: has neither split.csv (id,split) nor a folder train; use data.split=random"
        )
    # Drawn from all files, so that repairing one file moves no other to another split.
    assigned = random_split(len(files), split_seed) if official is None else official
    samples = _read(files, inputs, targets, skipped)
    if not samples:
        raise DataError(f"{root}: no usable mesh; first problem: {skipped[0]}")
    kept = np.array([identifier in samples for identifier in files])
    check_sizes(str(root), assigned[kept], sizes)
    items = list(samples.values())
    axes = "xyz"[: items[0].pos.shape[1]]
    fields = _fields([*axes, *inputs, *targets], targets, units or {}, scaling or {})
    seen = len(axes) + len(inputs)  # fields that the network sees
    how = "Random split of the files." if official is None else "Split as the folder says."
    return FieldDataset(
        name=name,
        coordinates=fields[: len(axes)],
        inputs=fields[len(axes) : seen],
        targets=fields[seen:],
        items=items,
        split=assigned[kept],
        note=f"{note.strip()} {how}".strip(),
        aligned=_aligned(items),
        skipped=skipped,
    )


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _find(path: str | Sequence[str]) -> tuple[Path, dict[str, Path], list[str]]:
    """Return the folder, its sorted mesh files by id, and messages about duplicate ids."""
    if isinstance(path, str):
        root = Path(path)
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; give data.path=FOLDER, a folder of mesh files, or "
                "data.path=[FILE,FILE,...]"
            )
        paths = mesh_files(root, below=True)
    else:
        paths = sorted(p.absolute() for file in path for p in mesh_files(Path(file)))
        root = Path(os.path.commonpath([file.parent for file in paths])) if paths else Path()
    if not paths:
        raise DataError(f"{root}: holds no mesh file; expected {', '.join(SUFFIXES)}")
    files: dict[str, Path] = {}
    skipped = []
    for file in paths:
        identifier = file.relative_to(root).with_name(mesh_name(file)).as_posix()
        if identifier in files:
            used = files[identifier].name
            skipped.append(f"{file}: duplicate id: {used} is used, this file is skipped")
        files.setdefault(identifier, file)
    return root, files, skipped


def _official_split(root: Path, ids: list[str], skipped: list[str]) -> np.ndarray | None:
    """Return the split of split.csv, or of the sub-folders of the files; None without either."""
    table = root / "split.csv"
    if table.is_file():
        return _table_split(table, ids, skipped)
    folders = [identifier.partition("/")[0] for identifier in ids]
    if SPLITS[0] not in folders:
        return None
    return np.array([folder if folder in SPLITS else "" for folder in folders], dtype="<U5")


def _table_split(table: Path, ids: list[str], skipped: list[str]) -> np.ndarray:
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read: {error}") from error
    if not {"id", "split"} <= set(reader.fieldnames or ()):
        raise DataError(f"{table}: the first line must name the columns id and split")
    split_by_key = {row["id"].strip(): (row["split"] or "").strip() for row in rows}
    if unknown := set(split_by_key.values()) - {*SPLITS, ""}:
        raise DataError(
            f"{table}: split is {', '.join(sorted(unknown))} in some rows; use train, val and "
            "test, or leave it empty for meshes that are not used"
        )
    # A key is an id or a whole file name.
    short = {key.removesuffix(Path(key).suffix): key for key in split_by_key if key not in ids}
    keys = [key if key in split_by_key else short.get(key) for key in ids]
    absent = [key for key in split_by_key if key not in set(keys)]
    if absent:
        skipped.append(f"{table}: ids without a mesh file: {len(absent)}, the first is {absent[0]}")
    if None in keys:
        first = ids[keys.index(None)]
        skipped.append(
            f"{table}: mesh files without a row, not used: {keys.count(None)}, the first is {first}"
        )
    return np.array(["" if key is None else split_by_key[key] for key in keys], dtype="<U5")


def _read(
    files: Mapping[str, Path], inputs: list[str], targets: list[str], skipped: list[str]
) -> dict[str, MeshSample]:
    """Read the meshes that can be used, by id, all of one dimension."""
    samples: dict[str, MeshSample] = {}
    console = Console(file=sys.stderr)
    progress = track(files.items(), "mesh files", console=console, transient=True,
                     disable=not console.is_terminal)  # fmt: skip
    for identifier, file in progress:
        try:
            samples[identifier] = replace(read_mesh(file, None, inputs, targets), id=identifier)
        except DataError as error:
            skipped.append(str(error))
    dimensions = Counter(sample.pos.shape[1] for sample in samples.values())
    usual = dimensions.most_common(1)[0][0] if dimensions else None
    for identifier in [key for key, sample in samples.items() if sample.pos.shape[1] != usual]:
        try:  # a flat one among spatial ones
            sample = read_mesh(files[identifier], usual, inputs, targets)
            samples[identifier] = replace(sample, id=identifier)
        except DataError as error:
            del samples[identifier]
            skipped.append(str(error))
    return samples


def _fields(
    names: Sequence[str],
    targets: Sequence[str],
    units: Mapping[str, str],
    scaling: Mapping[str, str | float],
) -> tuple[Field, ...]:
    if not targets:
        raise DataError("data.targets is empty; name the fields to predict")
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"duplicate field {duplicates[0]}; name it only once among coordinates, data.inputs "
            "and data.targets"
        )
    for key, values, allowed in (
        ("units", units, names),
        ("scaling", scaling, [name for name in names if name not in targets]),
    ):
        if unknown := [name for name in values if name not in allowed]:
            raise DataError(f"data.{key}: no field {unknown[0]!r}; choose {', '.join(allowed)}")
    for name, value in scaling.items():
        if value not in SCALINGS and (not isinstance(value, int | float) or value <= 0):
            raise DataError(
                f"data.scaling: {name} is {value!r}; choose {', '.join(SCALINGS)} or a number "
                "to divide by"
            )
    return tuple(Field(n, units.get(n) or "", scaling.get(n, Field.scaling)) for n in names)


def _aligned(items: list[MeshSample]) -> bool:
    """Tell whether all meshes connect the same nodes, so that they are one mesh, deformed."""
    first = items[0]
    return bool(first.cells) and all(
        len(item.pos) == len(first.pos)
        and item.cells.keys() == first.cells.keys()
        and all(np.array_equal(item.cells[kind], first.cells[kind]) for kind in first.cells)
        for item in items
    )
