"""Elastic constants and equation of state of the exact model, against published values."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.datasets import stillinger_weber
from matattn.workflows.potentials.properties import (
    at_rest,
    elastic_constants,
    equation_of_state,
)


def silicon(lattice=5.431):
    pos, cell = stillinger_weber.crystal(1, lattice)
    return Structure(Lattice(cell), ["Si"] * 8, pos / cell[0, 0])


def test_elastic_constants_are_the_published_ones(exact):
    """Cowley, Phys. Rev. Lett. 60, 2379 (1988): 151.4, 76.4, 56.4 GPa."""
    found = elastic_constants(exact, silicon())
    expected = {(0, 0): 151.4, (0, 1): 76.4, (3, 3): 56.4}
    for place, value in expected.items():
        assert found.relaxed[place] == pytest.approx(value, rel=0.01)
    cubic = found.relaxed
    assert np.ptp(np.diag(cubic)[:3]) < 0.01 and np.ptp(np.diag(cubic)[3:]) < 0.01
    assert np.abs(cubic[:3, 3:]).max() < 0.01
    assert found.clamped[3, 3] > 1.5 * cubic[3, 3]  # atoms within the cell give way
    assert found.stable and not found.unrelaxed and found.asymmetry < 0.01
    bulk, shear = found.moduli()
    assert bulk == pytest.approx((151.4 + 2 * 76.4) / 3, rel=0.01) and 40 < shear < 60


def test_elastic_constants_turn_with_the_crystal(exact):
    """Along [110] a cubic crystal has (C11 + C12 + 2 C44) / 2."""
    turn = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    first = silicon()
    turned = Structure(Lattice(first.lattice.matrix @ turn.T), first.species, first.frac_coords)
    found = elastic_constants(exact, turned).relaxed
    assert found[0, 0] == pytest.approx((151.4 + 76.4) / 2 + 56.4, rel=0.01)


def test_equation_of_state_has_the_bulk_modulus_of_the_elastic_constants(exact):
    found = equation_of_state(exact, silicon())
    assert (8 * found.volume) ** (1 / 3) == pytest.approx(5.431, abs=1e-3)
    assert found.energy == pytest.approx(-4.3366, abs=1e-4)
    assert found.bulk_modulus == pytest.approx((151.4 + 2 * 76.4) / 3, rel=0.01)
    np.testing.assert_allclose(found.curve(found.volumes), found.energies, atol=1e-5)
    assert found.residual < 0.01


def test_energies_without_a_minimum_have_no_bulk_modulus(exact):
    assert np.isnan(equation_of_state(exact, silicon(4.6)).bulk_modulus)


def test_a_crystal_is_relaxed_first(exact):
    found = at_rest(exact, silicon(5.6))
    assert not found.problem and found.structure.lattice.a == pytest.approx(5.431, abs=1e-3)
