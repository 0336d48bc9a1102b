"""Input features of the chemical elements.

``one_hot`` learns every element from data alone, as the published networks do. ``properties``
describes it by its position in the periodic table and by tabulated quantities. Elements that are
rare in the training data then borrow from their neighbours, which small data sets need.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

NUM_ELEMENTS = 98  # hydrogen to californium
FEATURES = ("one_hot", "properties")


def element_features(kind: str) -> Tensor:
    """Return the feature table [98, F], row Z - 1. Rows have a mean squared length of one.

    Raises:
        ValueError: ``kind`` is not one of FEATURES.
    """
    if kind == "one_hot":
        return torch.eye(NUM_ELEMENTS)
    if kind == "properties":
        table = _property_table()
        return table / table.square().sum(-1).mean().sqrt()
    raise ValueError(f"element_features={kind!r}: choose one of {', '.join(FEATURES)}")


def _property_table() -> Tensor:
    """Return group, row and block as one-hot columns, then quantities of mean 0 and variance 1.

    Quantities come from pymatgen's periodic table: Pauling electronegativity, atomic radius (Å),
    logarithm of the atomic mass, first ionisation energy and electron affinity (eV), Mendeleev
    number, valence electrons in s, p, d and f shells, smallest and largest common oxidation state.
    A missing value takes the mean of its group, or of all elements.
    """
    from pymatgen.core import Element

    elements = [Element.from_Z(z) for z in range(1, NUM_ELEMENTS + 1)]
    groups = torch.tensor([element.group for element in elements])
    rows = torch.tensor([element.row for element in elements])
    blocks = torch.tensor(["spdf".index(element.block) for element in elements])
    categories = [
        torch.nn.functional.one_hot(groups - 1, 18),
        torch.nn.functional.one_hot((rows - 1).clamp(max=6), 7),
        torch.nn.functional.one_hot(blocks, 4),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of every missing value
        quantities = torch.tensor([_quantities(element) for element in elements])
    for column in quantities.T:
        valid = ~column.isnan()
        for group in groups.unique():
            members = groups == group
            if (members & valid).any():
                column[members & ~valid] = column[members & valid].mean()
        column[column.isnan()] = column[valid].mean()
    quantities = (quantities - quantities.mean(0)) / quantities.std(0)
    return torch.cat([torch.cat(categories, dim=1).float(), quantities], dim=1)


def _quantities(element) -> list[float]:
    """Return the tabulated quantities of an element, NaN where a value is missing."""

    def number(value) -> float:
        return math.nan if value is None else float(value)

    valence = dict.fromkeys("spdf", 0)
    shells = element.full_electronic_structure
    core = max((z for z in (2, 10, 18, 36, 54, 86) if z < element.Z), default=0)
    filled = 0
    for _, shell, count in sorted(shells, key=_aufbau):
        if filled >= core:
            valence[shell] += count
        filled += count
    states = element.common_oxidation_states or (0,)
    return [
        number(element.X),
        number(element.atomic_radius),
        math.log(float(element.atomic_mass)),
        number(element.ionization_energy),
        number(element.electron_affinity),
        number(element.mendeleev_no),
        *(float(count) for count in valence.values()),
        float(min(states)),
        float(max(states)),
    ]


def _aufbau(shell: tuple[int, str, int]) -> tuple[int, int]:
    """Return the key that sorts shells as they fill: n + l, then n (Madelung's rule)."""
    n, letter, _ = shell
    return n + "spdf".index(letter), n
