"""The user's own crystals and molecules, and published ones in the same formats."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matattn.datasets.structure_formats import find_files, read_remarks, read_rows
from matattn.datasets.structures_io import make_dataset, read_table
from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset


def load(
    name: str,
    path: str,
    targets: Sequence[str],
    split: str | None = None,
    split_seed: int = 0,
    sizes: Sequence[int] | None = None,
    max_sites: int | None = None,
    units: Mapping[str, str] | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read structures from any file that ``matattn.datasets.structure_formats`` knows.

    Args:
        name: what reports call the data.
        path: JSON lines, extended XYZ, Parquet, ASE's LMDB, a CSV beside structure files, or a
            folder of such files.
        targets: properties to predict, by matattn's names or the file's. Moduli in GPa become
            log10(GPa); values that are not positive count as missing.
        split: "official" (the file's ``split`` column), "random" (seeded 80/10/10 of the rows), or
            "formula" (80/10/10 of the reduced formulas: no composition is in two splits);
            None: official if the file has the column, else random.
        split_seed: seed of the latter two.
        sizes: rows that train, val and test must have, for published benchmarks.
        max_sites: leave out larger cells.
        units: units of properties that matattn does not know, for example {"tc": "K"}.
        note: what errors on these rows may be compared with; the split is added to it.

    Returns:
        The data set of all usable rows; ``PropertyDataset.skipped`` lists the others.

    Raises:
        DataError: if the file, a target or the split column is missing, if the sizes differ, or
            if no usable row is left.
    """
    if not path:
        raise DataError("data.path is empty; give data.path=FILE, or a folder with one CSV")
    table = read_table(path, find_files(Path(path)), lambda: read_rows(Path(path)))
    remarks = read_remarks(Path(path))
    for remark in remarks:
        print(f"remark: {remark}", file=sys.stderr)
    note = " ".join([note, *remarks])
    if "" in table.columns:  # the values of a CSV without a header
        if len(names := [targets] if isinstance(targets, str) else list(targets)) != 1:
            raise DataError(
                f"{path}: has one column of values and no header; give one name, "
                f"'data.targets=[NAME]', not {names}"
            )
        table.columns[names[0]] = table.columns.pop("")
    return make_dataset(
        name, path, table, targets, split, split_seed, sizes, max_sites, units, note
    )
