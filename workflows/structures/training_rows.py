"""The training rows that novelty is measured from, by name: what a prediction rests on."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pymatgen.core import Composition, Element

from matattn.errors import BundleError
from matattn.structures.dataset import PropertyDataset
from matattn.tables import Row, csv_text
from matattn.uncertainty import MOST_REFERENCES

FILE = "training_rows.csv"  # of a bundle, in the order of its references


def references(rows: np.ndarray) -> np.ndarray:
    """Return the training rows that are kept as references: all, or every so many-th."""
    return rows[:: -(-len(rows) // MOST_REFERENCES)]


def text_of(dataset: PropertyDataset, rows: Sequence[int], names: Sequence[str]) -> str:
    """Return id, formula and labels of rows, as a table."""
    labels, ids = dataset.labels(), dataset.ids()
    columns = {target.name: column for column, target in enumerate(dataset.targets)}
    table: list[Row] = []
    for row in rows:
        symbols = [Element.from_Z(z).symbol for z in dataset.items[row].z.tolist()]
        formula = Composition(Counter(symbols)).reduced_formula
        values = {name: float(labels[row, columns[name]]) for name in names}
        table.append({"id": ids[row], "formula": formula, **values})
    return csv_text(table)


def read(folder: Path, names: Sequence[str], count: int) -> list[Row] | None:
    """Return the rows of a bundle, with labels as ``label_<target>``; None if it has none.

    Raises BundleError when they are not ``count`` rows with the labels ``names``.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines(), strict=True))
        if lines[0] != ["id", "formula", *names] or len(lines) != count + 1:
            raise ValueError(f"expected {count} rows of id, formula, {', '.join(names)}")
        labels = [f"label_{name}" for name in names]
        return [
            {"id": name, "formula": formula}
            | {key: float(text) if text else None for key, text in zip(labels, values, strict=True)}
            for name, formula, *values in lines[1:]
        ]
    except (csv.Error, ValueError, IndexError) as error:
        raise BundleError(f"{file}: cannot be read: {error}") from None
