"""Phonons of the exact model, against its elastic constants and published frequency."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.datasets import stillinger_weber
from matattn.workflows.potentials.phonons import phonons


def silicon(lattice=5.431):
    pos, cell = stillinger_weber.crystal(1, lattice)
    return Structure(Lattice(cell), ["Si"] * 8, pos / cell[0, 0])


def test_phonons_at_gamma_and_along_lines(exact):
    found = phonons(exact, silicon())
    assert len(found.at_gamma) == 6 and np.abs(found.at_gamma[:3]).max() < 1e-3
    np.testing.assert_allclose(found.at_gamma[3:], found.at_gamma[5], atol=1e-3)
    assert found.at_gamma[5] == pytest.approx(17.83, abs=0.02)
    assert found.stable and found.lowest > -0.01
    begin, end, along = found.bands[0]
    assert "Gamma" in begin and end == "X" and along.shape == (41, 6)
    # The slope of the transverse branch is the speed of sound sqrt(C44 / density).
    density = 8 * 28.0855 * 1.66054 / 5.431**3  # g/cm^3, from u and Å^3
    speed = np.sqrt(56.4 / density)  # km/s
    step = 2 / 5.431 / (2 * 40) * 1  # 1/Å between the points: X is at 1 / a
    assert along[2, 0] / (2 * step) * 0.1 == pytest.approx(speed, rel=0.03)


def test_lines_do_not_depend_on_the_axes(exact):
    """A crystal that is turned, in another cell, has the same frequencies along the same lines."""
    first = silicon()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    basis = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    lattice = Lattice(basis @ first.lattice.matrix @ turn)
    turned = Structure(lattice, first.species, first.frac_coords @ np.linalg.inv(basis))
    one, other = (phonons(exact, crystal).bands for crystal in (first, turned))
    assert [line[:2] for line in one] == [line[:2] for line in other]
    for line, same in zip(one, other, strict=True):
        np.testing.assert_allclose(line[2], same[2], atol=0.02)
