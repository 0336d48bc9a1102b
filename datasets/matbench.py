"""Matbench v0.1: the nine tasks with structures, and their official five folds.

Dunn et al., npj Computational Materials 6, 138 (2020). A file is a pandas table (index, columns,
data) in JSON with pymatgen structures and one target; the folds depend on the order of rows, and of
a classification on the labels, too.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matattn.datasets.binary_tables import pymatgen_row
from matattn.datasets.structure_formats import find_files, read_rows
from matattn.datasets.structures_io import Rows, Table, make_dataset, read_table
from matattn.download import present
from matattn.errors import DataError, StructureError
from matattn.structures.dataset import PropertyDataset, random_split
from matattn.units import PROBABILITY, truth


@dataclass(frozen=True)
class Task:
    """A task: the target's column in the file, matattn's name and unit for it, rows, SHA-256."""

    column: str
    target: str
    unit: str
    rows: int
    sha256: str


# Tasks whose rows are compositions: matattn's networks read structures.
_COMPOSITIONS = ("expt_gap", "expt_is_metal", "glass", "steels")
URL = "https://ml.materialsproject.org/projects/matbench_{}.json.gz"

# Checksums are those of matminer's dataset_metadata.json.
TASKS = {
    "dielectric": Task(
        "n",
        "refractive_index",
        "1",
        4764,
        "83befa09bc2ec2f4b6143afc413157827a90e5e2e42c1eb507ccfa01bf26a1d6",
    ),
    "jdft2d": Task(
        "exfoliation_en",
        "exfoliation_energy_per_atom",
        "meV/atom",
        636,
        "26057dc4524e193e32abffb296ce819b58b6e11d1278cae329a2f97817a4eddf",
    ),
    "log_gvrh": Task(
        "log10(G_VRH)",
        "log10_shear_modulus",
        "log10(GPa)",
        10987,
        "098af941f4c663270f1fe21abf20ffad6fb85ecbfcba5786ceac03983ac29da7",
    ),
    "log_kvrh": Task(
        "log10(K_VRH)",
        "log10_bulk_modulus",
        "log10(GPa)",
        10987,
        "44b113ddb7e23aa18731a62c74afa7e5aa654199e0db5f951c8248a00955c9cd",
    ),
    "mp_e_form": Task(
        "e_form",
        "formation_energy_per_atom",
        "eV/atom",
        132752,
        "dedcb1d4ba2e3e50dbdd45ba5bc647a00e9c2bcf8f8bf556dc8e92caa39eb21f",
    ),
    "mp_is_metal": Task(
        "is_metal",
        "is_metal",
        PROBABILITY,
        106113,
        "9a028ed5750a4c76ca36e9f3c8d48fe0bf3fb21b76ec2289e58ae7048d527919",
    ),
    "mp_gap": Task(
        "gap pbe",
        "band_gap",
        "eV",
        106113,
        "58b65746bd88329986ed66031a2ac1369c7c522f7bc9f9081528e07097c2c057",
    ),
    "perovskites": Task(
        "e_form",
        "formation_energy_per_cell",
        "eV",
        18928,
        "4641e2417f8ec8b50096d2230864468dfa08278dc9d257c327f65d0305278483",
    ),
    "phonons": Task(
        "last phdos peak",
        "last_phdos_peak",
        "1/cm",
        1265,
        "4db551f21ec5f577e6202725f10e34dfc509aa7df3a6bdaac497da7f6dbbb9b3",
    ),
}


def load(
    name: str,
    path: str,
    task: str,
    fold: int,
    inner: bool = False,
    max_sites: int | None = None,
    note: str = "",
    download: bool = False,
) -> PropertyDataset:
    """Read a Matbench task; ``fold`` 0 to 4 is the test set, all other rows are training rows.

    ``path`` is the official file, or JSON lines with its rows in its order. There are no validation
    rows: Matbench lets each method take some of the training rows for that. ``inner`` does: a fifth
    of them, at random, are validation rows, and the fold's test rows are not used, so that a recipe
    can be searched. With ``download`` an absent official file is fetched.

    Raises DataError when the file is missing or has other rows than the official one.
    """
    if task in _COMPOSITIONS:
        raise DataError(f"data.task={task}: its rows are compositions without structures")
    if task not in TASKS:
        raise DataError(f"data.task={task!r}: choose {', '.join(TASKS)}")
    if fold not in range(5):
        raise DataError(f"data.fold={fold!r}: choose 0 to 4")
    official = TASKS[task]
    file = Path(path)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        table = read_table(path, find_files(file), lambda: read_rows(file))
    else:
        command = f"python train.py data=matbench data.task={task} data.download=true"
        present(path, URL.format(task), command, download, official.sha256)
        table = read_table(path, [file], lambda: read_entries(file, task))
    count = len(table.ids) + len(table.skipped)
    if count != official.rows:
        raise DataError(f"{path}: has {count} rows, matbench_{task} has {official.rows}")
    fold_of_row = folds(official.rows)
    if official.unit == PROBABILITY:
        fold_of_row = _stratified(table, official, path)
    numbers = [_row_index(identifier, official.rows, path) for identifier in table.ids]
    splits = np.where(fold_of_row[numbers] == fold, "test", "train")
    if inner:
        drawn = random_split(official.rows, fold, (0.8, 0.2, 0.0))[numbers]
        splits = np.where(splits == "test", "", drawn)
    if official.column in table.columns:
        table.columns[official.target] = table.columns.pop(official.column)
    table.columns["split"] = splits.tolist()
    units = {official.target: official.unit}
    return make_dataset(
        name, path, table, [official.target], max_sites=max_sites, units=units, note=note
    )


def folds(count: int) -> np.ndarray:
    """Return the number of the fold that tests each row [count].

    It is that of scikit-learn's ``KFold(5, shuffle=True, random_state=18012019)``.
    """
    order = np.arange(count)
    np.random.RandomState(18012019).shuffle(order)
    sizes = [len(part) for part in np.array_split(order, 5)]
    result = np.empty(count, dtype=np.int64)
    result[order] = np.repeat(np.arange(5), sizes)
    return result


def stratified_folds(labels: np.ndarray) -> np.ndarray:
    """Return the number of the fold that tests each row, with equal shares of labels 0 and 1 [n].

    It is that of scikit-learn's ``StratifiedKFold(5, shuffle=True, random_state=18012019)``.
    """
    generator = np.random.RandomState(18012019)
    first = labels[0]  # scikit-learn numbers the classes in the order of their first rows
    ordered = np.sort(labels != first)
    result = np.empty(len(labels), dtype=np.int64)
    for later in (False, True):
        counts = [int((ordered[fold::5] == later).sum()) for fold in range(5)]
        numbers = np.repeat(np.arange(5), counts)
        generator.shuffle(numbers)
        result[(labels != first) == later] = numbers
    return result


def _stratified(table: Table, official: Task, path: str) -> np.ndarray:
    """Return the fold of each official row of a classification; all of them are needed."""
    if table.skipped:
        raise DataError(
            f"{path}: the folds follow from the labels of all rows, and {len(table.skipped)} could "
            f"not be read; the first: {table.skipped[0]}"
        )
    values = table.columns.get(official.column, [None] * len(table.ids))
    labels = np.full(official.rows, -1)
    for identifier, value in zip(table.ids, values, strict=True):
        if truth(value) not in (0, 1):
            raise DataError(f"{path}: {identifier}: {official.column} is {value}, expected 0 or 1")
        labels[_row_index(identifier, official.rows, path)] = truth(value)
    return stratified_folds(labels)


def read_entries(path: Path, task: str) -> Rows:
    """Read all rows of an official file, with Matbench's ids: ``mb-phonons-0001`` is the first."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        index = content["columns"].index("structure")
        data = content["data"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a Matbench file: {error}") from error
    target = content["columns"][1 - index]
    digits = len(str(len(data)))
    rows, skipped = [], []
    for number, cells in enumerate(data, start=1):
        identifier = f"mb-{task.replace('_', '-')}-{number:0{digits}d}"
        where = f"{path}, row {number} ({identifier})"
        try:
            row = {"id": identifier, target: cells[1 - index]}
            rows.append((where, row | pymatgen_row(cells[index], where)))
        except StructureError as error:
            skipped.append(str(error))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            skipped.append(f"{where}: bad or missing value: {error!r}")
    return rows, skipped


def _row_index(identifier: str, count: int, path: str) -> int:
    """Return the index of a row in the official file."""
    number = identifier.rpartition("-")[2]
    if not number.isdigit() or not 1 <= int(number) <= count:
        raise DataError(f"{path}: {identifier!r} is not an id of Matbench, such as mb-phonons-0001")
    return int(number) - 1
