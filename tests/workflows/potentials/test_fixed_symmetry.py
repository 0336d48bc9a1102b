"""Space groups of generated crystals, and what is left of forces and stresses by them."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.workflows.potentials.fixed_symmetry import SpaceGroup

# Quartz has rotations by 120 degrees and screw axes, rutile a glide plane, the last one nothing.
CRYSTALS = {
    "P3_221": Structure.from_spacegroup(
        "P3_221", Lattice.hexagonal(4.913, 5.405), ["Si", "O"],
        [[0.4697, 0, 0], [0.4135, 0.2669, 0.1191]],
    ),
    "P4_2/mnm": Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    ),
    "P1": Structure(
        Lattice.from_parameters(4, 5, 6, 80, 95, 100), ["Na", "Cl", "O"],
        [[0.1, 0.2, 0.3], [0.55, 0.61, 0.78], [0.8, 0.33, 0.1]],
    ),
}  # fmt: skip


@pytest.fixture(params=CRYSTALS)
def named(request):
    return request.param, CRYSTALS[request.param]


def test_it_is_the_group_of_the_crystal(named):
    symbol, structure = named
    found = SpaceGroup.of(structure, 0.01)
    assert found.symbol == symbol
    for becomes in found.becomes:
        assert sorted(becomes) == list(range(len(structure)))
        assert all(structure[a].specie == structure[b].specie for a, b in enumerate(becomes))


def test_what_is_left_is_symmetric_and_nothing_symmetric_is_lost(named):
    _, structure = named
    group, cell = SpaceGroup.of(structure, 0.01), structure.lattice.matrix
    generator = np.random.default_rng(0)
    forces, stress = generator.normal(size=(len(structure), 3)), generator.normal(size=(3, 3))
    forces, stress = group.vectors(forces, cell), group.tensor(stress + stress.T, cell)
    for turn, becomes in zip(group._turns(cell), group.becomes, strict=True):
        np.testing.assert_allclose(forces @ turn, forces[becomes], atol=1e-12)
        np.testing.assert_allclose(turn.T @ stress @ turn, stress, atol=1e-12)
    np.testing.assert_allclose(group.vectors(forces, cell), forces, atol=1e-12)
    np.testing.assert_allclose(group.tensor(stress, cell), stress, atol=1e-12)


def test_atoms_settle_on_their_places(named):
    symbol, structure = named
    off = structure.copy()
    off.perturb(0.002)
    settled = SpaceGroup.of(off, 0.02).settled(off)
    assert SpaceGroup.of(settled, 1e-6).symbol == symbol
    away = settled.frac_coords - off.frac_coords
    moved = np.linalg.norm((away - away.round()) @ structure.lattice.matrix, axis=1)
    assert moved.max() < 0.01
