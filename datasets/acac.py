"""Acetylacetone with DFT energies and forces, trained at 300 K and tested at 300 and 600 K.

Batatia et al., arXiv 2205.06643 (2022); davkovacs/BOTNet-datasets, MIT. PBE. The further tests are
a turn about a bond and the hydrogen that moves from one oxygen to the other, energies only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from matattn.datasets import potential_files
from matattn.errors import DataError
from matattn.potentials.dataset import Frame, PotentialDataset

PARTS = {  # of the file name: split and group
    "isolated_atoms": ("train", "lone atoms"),
    "train_300K": ("train", "300 K"),
    "test_MD_300K": ("test", "300 K"),
    "test_MD_600K": ("test", "600 K"),
    "test_dihedral": ("test", "dihedral"),
    "test_H_transfer": ("test", "H transfer"),
}


def load(
    name: str, path: str, val: float = 0.1, split_seed: int = 0, note: str = ""
) -> PotentialDataset:
    """Read the molecules of ``path``/acac_*.extxyz.gz.

    ``val`` is the share of the molecules at 300 K for training that become validation rows. Raises
    DataError for what cannot be read.
    """
    if not 0 <= val < 1:
        raise DataError(f"data.val={val!r}: expected a share of the training rows, 0 to below 1")
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder; set MATATTN_DATA, or data.path, to the data")
    frames: list[Frame] = []
    splits: list[str] = []
    doubts: list[str] = []
    for part, (of_part, group) in PARTS.items():
        read = potential_files.load(name, str(Path(path) / f"acac_{part}.extxyz.gz"))
        frames += [replace(frame, group=group) for frame in read.frames]
        splits += [of_part] * len(read.frames)
        doubts += read.doubts
    split = np.array(splits, dtype="<U5")
    hot = [row for row in np.flatnonzero(split == "train") if len(frames[row].z) > 1]
    drawn = np.random.default_rng(split_seed).permutation(hot)
    split[drawn[: round(val * len(hot))]] = "val"
    return PotentialDataset(name, frames, split, note, doubts)
