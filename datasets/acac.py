"""Acetylacetone with DFT energies and forces, trained at 300 K and tested at 300 and 600 K.

Batatia et al., arXiv 2205.06643 (2022); davkovacs/BOTNet-datasets, MIT. PBE. The further tests are
a turn about a bond and the hydrogen that moves from one oxygen to the other, energies only.
"""

from __future__ import annotations

from matattn.datasets.potential_files import load_official
from matattn.potentials.dataset import PotentialDataset

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
    files = {f"acac_{part}.extxyz.gz": found for part, found in PARTS.items()}
    return load_official(name, path, files, val, split_seed, note)
