"""Elastic constants from strained cells with known stresses."""

import numpy as np
import pytest

from matattn.datasets import stillinger_weber
from matattn.potentials.dataset import Frame
from matattn.workflows.potentials.strained import cubic, stiffness, strained_crystals

CUBIC = np.zeros((6, 6))
CUBIC[:3, :3] = 0.5
CUBIC[range(6), range(6)] = [1, 1, 1, 0.6, 0.6, 0.6]  # eV/Å^3


def cells(count, moved=0.0):
    """Diamond under strains of up to 5 %, with stresses that have a square term."""
    generator = np.random.default_rng(0)
    pos, cell = stillinger_weber.crystal(1)
    found = []
    for number in range(count):
        strain = generator.uniform(-0.05, 0.05, 6) * (number > 0)
        matrix = np.diag(strain[:3])
        for place, (row, column) in enumerate([(1, 2), (0, 2), (0, 1)], start=3):
            matrix[row, column] = matrix[column, row] = strain[place] / 2
        values = CUBIC @ (strain - 2 * strain**2)
        stress = np.diag(values[:3])
        for place, (row, column) in enumerate([(1, 2), (0, 2), (0, 1)], start=3):
            stress[row, column] = stress[column, row] = values[place]
        shifted = pos + moved * generator.normal(size=pos.shape)
        deformed = np.eye(3) + matrix
        found.append(Frame(str(number), np.full(8, 14), shifted @ deformed, cell @ deformed,
                           0.0, np.zeros((8, 3)), stress))  # fmt: skip
    return found


def test_constants_come_back():
    frames = cells(40)
    rows, strains = strained_crystals(frames)
    assert rows == list(range(40))
    found = stiffness(strains, np.stack([frame.stress for frame in frames]))
    np.testing.assert_allclose(found, CUBIC, atol=1e-6)
    assert cubic(found) == pytest.approx((1.0, 0.5, 0.6))


def test_crystals_with_moved_atoms_do_not_count():
    assert len(strained_crystals(cells(40) + cells(30, moved=0.3))[0]) == 40
    assert strained_crystals(cells(40, moved=0.3))[0] == []


def test_too_few_say_nothing():
    assert strained_crystals(cells(19))[0] == []
    frames = cells(20)[:15]
    _, strains = strained_crystals(cells(20))
    assert stiffness(strains[:15], np.stack([frame.stress for frame in frames])) is None
