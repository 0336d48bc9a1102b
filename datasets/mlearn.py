"""Six elements with DFT energies, forces and stresses: the benchmark of Zuo et al.

J. Phys. Chem. A 124, 731 (2020), arXiv 1906.08888; materialsvirtuallab/mlearn, BSD-3. The rows here
have stresses in one order and sign, which those of the source do not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from matattn.datasets import potential_files
from matattn.errors import DataError
from matattn.potentials.dataset import PotentialDataset

ELEMENTS = ("Cu", "Ge", "Li", "Mo", "Ni", "Si")


def load(
    name: str, path: str, element: str, val: float = 0.12, split_seed: int = 0, note: str = ""
) -> PotentialDataset:
    """Read the official training and test rows of an element from ``path``/mlearn_*.extxyz.gz.

    ``val`` is the share of the training rows that become validation rows; there are no official
    ones. Raises DataError for other elements and files.
    """
    if element not in ELEMENTS:
        raise DataError(f"data.element={element!r}: choose {', '.join(ELEMENTS)}")
    if not 0 <= val < 1:
        raise DataError(f"data.val={val!r}: expected a share of the training rows, 0 to below 1")
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder; set MATATTN_DATA, or data.path, to the data")
    parts = {
        split: potential_files.load(name, str(Path(path) / f"mlearn_{element}_{split}.extxyz.gz"))
        for split in ("train", "test")
    }
    train, test = parts["train"].frames, parts["test"].frames
    split = np.array(["train"] * len(train) + ["test"] * len(test), dtype="<U5")
    drawn = np.random.default_rng(split_seed).permutation(len(train))
    split[drawn[: round(val * len(train))]] = "val"
    doubts = [line for part in parts.values() for line in part.doubts]
    return PotentialDataset(name, [*train, *test], split, note, doubts)
