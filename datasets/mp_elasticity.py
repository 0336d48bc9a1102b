"""Bulk and shear moduli of Materials Project 2018.6.1, with the split of Matformer's authors.

Yan et al., NeurIPS 2022 (arXiv 2209.11807); de Jong et al., Scientific Data 2, 150009 (2015). The
official files are Python pickles, which can run any program when they are opened. So a command
converts them once to JSON lines, with an unpickler that accepts only numbers and containers:

    python -m matattn.datasets.mp_elasticity bulk --download
"""

from __future__ import annotations

import argparse
import codecs
import gzip
import json
import math
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray

from matattn.datasets import crystals
from matattn.datasets.jarvis import structure
from matattn.download import present
from matattn.errors import DataError, MatattnError
from matattn.files import atomic_path
from matattn.structures.dataset import SPLITS, PropertyDataset

URLS = {
    "bulk": (40258705, 40258675, 40258666),
    "shear": (40258681, 40258684, 40258678),
}  # train, val, test


def load(
    name: str,
    path: str,
    targets: Sequence[str],
    sizes: Sequence[int] | None = None,
    max_sites: int | None = None,
    note: str = "",
) -> PropertyDataset:
    """Read the command's output; arguments as in ``matattn.datasets.crystals.load``."""
    if not Path(path).is_file():
        modulus = "shear" if "shear" in name else "bulk"
        raise DataError(
            f"{path}: no such file; make it with: python -m matattn.datasets.mp_elasticity "
            f"{modulus} --download (or set MATATTN_DATA to the folder of data sets)"
        )
    return crystals.load(name, path, targets, "official", 0, sizes, max_sites, note=note)


def convert(modulus: str, files: Sequence[Path], output: Path) -> list[str]:
    """Write JSON lines from the pickles of train, val and test; returns remarks.

    Each line has ``id``, ``lattice``, ``Z``, ``frac``, ``split`` and ``log10_<modulus>_modulus`` in
    log10(GPa). Values in GPa are recognised by their range; a modulus that is not positive has no
    logarithm, and its row is left out. Raises DataError when a file has another format.
    """
    entries = [
        (split, where, entry)
        for split, file in zip(SPLITS, files, strict=True)
        for where, entry in _entries(file)
    ]
    values = np.array([_value(entry, f"{modulus} modulus", where) for _, where, entry in entries])
    remarks = []
    if in_gpa := _is_in_gpa(values, files[0]):
        remarks.append("the values are in GPa; their logarithms were taken")
    rows = []
    for (split, where, entry), value in zip(entries, values, strict=True):
        if in_gpa and value <= 0:
            remarks.append(f"{where}: left out, its modulus is {value:g} GPa")
            continue
        try:
            crystal = {key: np.asarray(v).tolist() for key, v in structure(entry["atoms"]).items()}
            identifier = str(entry["id"])
        except (KeyError, TypeError, ValueError, AttributeError, np.linalg.LinAlgError) as error:
            remarks.append(f"{where}: left out, bad or missing value: {error!r}")
            continue
        label = math.log10(value) if in_gpa else float(value)
        row = {"id": identifier, **crystal, "split": split, f"log10_{modulus}_modulus": label}
        rows.append(json.dumps(row))
    with atomic_path(output) as partial, gzip.open(partial, "wt", encoding="utf-8") as text:
        text.write("\n".join(rows) + "\n")
    return remarks


def unpickle(path: Path) -> Any:
    """Read a pickle of numbers, texts, lists, dictionaries and NumPy arrays.

    Raises DataError for anything else that the file asks for, which is named and never called.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except MatattnError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # damaged pickles raise errors of any type
        raise DataError(f"{path}: cannot be read as a pickle: {error!r}") from error


def _latin1(text: str, encoding: str) -> bytes:
    """Return bytes from text, as Python 2 and old protocols write them."""
    if encoding != "latin1":
        raise DataError(f"encodes text as {encoding!r}")
    return codecs.encode(text, "latin1")


_ALLOWED = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
} | {
    (module, name): getattr(multiarray, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"asks for {module}.{name}, which is neither a number, a text, a container nor a "
                "NumPy array: refused"
            )
        return _ALLOWED[module, name]


def _entries(file: Path) -> list[tuple[str, dict[str, Any]]]:
    content = unpickle(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{file}: not a list of dictionaries")
    return [(f"{file}, entry {number}", entry) for number, entry in enumerate(content)]


def _value(entry: dict[str, Any], key: str, where: str) -> float:
    try:
        return float(entry[key])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}: has no number {key!r}; it has {', '.join(entry)}") from None


def _is_in_gpa(values: np.ndarray, file: Path) -> bool:
    """Tell whether moduli are in GPa (up to hundreds), not in log10(GPa) (diamond has 2.6)."""
    if not values.size or not np.isfinite(values).all():
        raise DataError(f"{file}: no values, or some that are not finite")
    largest, middle = values.max(), np.median(values)
    if largest < 3.2:
        return False
    if largest > 100 and middle > 10:
        return True
    raise DataError(
        f"{file}: moduli with a median of {middle:.3g} and a maximum of {largest:.3g} are neither "
        "in GPa nor in log10(GPa)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m matattn.datasets.mp_elasticity",
        description="Convert the official pickles of bulk or shear moduli to JSON lines.",
        epilog="Reads FOLDER/mp_elasticity/<modulus>_megnet_{train,val,test}.pkl and writes "
        "FOLDER/crystals/mp2018_<modulus>_modulus.jsonl.gz.",
    )
    parser.add_argument("modulus", choices=URLS)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(os.environ.get("MATATTN_DATA", "data")),
        help="the folder of data sets (default: $MATATTN_DATA, or data)",
    )  # fmt: skip
    parser.add_argument("--download", action="store_true", help="fetch absent pickles (figshare)")
    options = parser.parse_args(arguments)
    output = options.folder / "crystals" / f"mp2018_{options.modulus}_modulus.jsonl.gz"
    try:
        files = [_file(options.folder, options.modulus, n, options.download) for n in range(3)]
        remarks = convert(options.modulus, files, output)
    except (MatattnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(*remarks, f"wrote {output}", sep="\n")


def _file(folder: Path, modulus: str, number: int, download: bool) -> Path:
    path = folder / "mp_elasticity" / f"{modulus}_megnet_{SPLITS[number]}.pkl"
    url = f"https://ndownloader.figshare.com/files/{URLS[modulus][number]}"
    command = f"python -m matattn.datasets.mp_elasticity {modulus} --download"
    return present(path, url, command, download)


if __name__ == "__main__":
    main()
