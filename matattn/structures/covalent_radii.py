"""Covalent radii of the elements: Cordero et al., Dalton Trans. 2832 (2008)."""

from __future__ import annotations

from functools import cache

import numpy as np

_BEYOND_CURIUM = 1.69  # Å, that of curium: no heavier element has one in the table


@cache
def covalent_radii() -> np.ndarray:
    """Return covalent radii [119], Å, by atomic number; that of number 0 is 0."""
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core import Element

    symbols = (Element.from_Z(z).symbol for z in range(1, 119))
    known = CovalentRadius.radius
    return np.array([0.0, *(known.get(symbol, _BEYOND_CURIUM) for symbol in symbols)])
