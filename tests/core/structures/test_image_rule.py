"""Which images a network sums."""

import numpy as np
import pytest

from matattn.structures.image_rule import ImageRule


def test_boxes_are_those_of_the_published_code():
    z, pos, cell = np.ones(1, dtype=int), np.zeros((1, 3)), np.diag([3.0, 4.0, 30.0])
    assert len(ImageRule(0.0, box=True)(z, pos, cell).image) == 5**3
    images = ImageRule(9.5, box=True)(z, pos, cell).image
    assert np.abs(images).max(0).tolist() == [4, 3, 2]
    assert len(images) == 9 * 7 * 5


@pytest.mark.parametrize("symmetry", [-1e-3, 0.1, float("inf")])
def test_tolerances_that_merge_shells_are_refused(symmetry):
    with pytest.raises(ValueError, match="expected 0 to 0.01"):
        ImageRule(7.0, symmetry=symmetry)


def test_boxes_have_no_symmetry():
    with pytest.raises(ValueError, match="do not have the symmetry"):
        ImageRule(7.0, box=True, symmetry=1e-3)
