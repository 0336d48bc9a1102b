"""Six elements with DFT energies, forces and stresses: the benchmark of Zuo et al.

J. Phys. Chem. A 124, 731 (2020), arXiv 1906.08888; materialsvirtuallab/mlearn, BSD-3. The rows here
have stresses in one order and sign, which those of the source do not.
"""

from __future__ import annotations

from matattn.datasets.potential_files import load_official
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
    files = {f"mlearn_{element}_{split}.extxyz.gz": (split, None) for split in ("train", "test")}
    return load_official(name, path, files, val, split_seed, note)
