"""Neo-Hookean plates: material, tangent and Newton's method against known solutions."""

import numpy as np
import pytest
from scipy.optimize import fsolve

from matattn import cache
from matattn.datasets.pde import neo_hookean_plate as rubber
from matattn.datasets.pde.generated import Layout, NotSolvedError, factorised, random_mesh
from matattn.datasets.pde.neo_hookean_plate import GRID, LAME, SHEAR, NeoHookean
from matattn.datasets.pde.plate_with_hole import random_hole


@pytest.fixture(scope="module")
def small():
    return rubber.load("plates", sizes=(2, 1, 1))


def square(held):
    """An undeformed unit square; ``held(x, y)`` gives the held components of a node."""
    points, triangles = random_mesh(np.random.default_rng(0), 6, 6)
    mask = np.array([held(*point) for point in points])
    return NeoHookean(points, triangles, Layout(triangles, mask))


def holed(seed=1):
    points = rubber.EDGE * GRID.points(random_hole(np.random.default_rng(seed)))
    return NeoHookean(points, GRID.triangles, rubber.plate_layout())


def energy(solid, displacement):
    f, j = solid.deformation(displacement)
    density = SHEAR / 2 * ((f**2).sum(axis=(1, 2)) - 2) - SHEAR * np.log(j)
    return solid.areas @ (density + LAME / 2 * np.log(j) ** 2)


def wobble(solid, seed=0, size=0.02):
    return np.random.default_rng(seed).normal(0, size, solid.points.shape)


def test_forces_are_the_gradient_of_the_energy():
    solid = square(lambda x, y: (False, False))
    u, direction, step = wobble(solid), wobble(solid, 1, 1.0), 1e-6
    difference = energy(solid, u + step * direction) - energy(solid, u - step * direction)
    expected = difference / (2 * step)
    np.testing.assert_allclose((solid.internal_forces(u) * direction).sum(), expected, rtol=1e-6)


def test_tangent_is_the_derivative_of_the_forces():
    solid = square(lambda x, y: (False, False))
    u, direction, step = wobble(solid), wobble(solid, 1, 1.0), 1e-6
    ahead, behind = (solid.internal_forces(u + sign * step * direction) for sign in (1, -1))
    matrix = solid.layout.matrix(solid.element_matrices(u))
    found = (matrix @ direction.reshape(-1)).reshape(-1, 2)
    expected = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_small_strains_are_linear_elasticity():
    from skfem import Basis, ElementTriP1, ElementVector, MeshTri
    from skfem.models.elasticity import linear_elasticity

    solid = square(lambda x, y: (False, False))
    found = solid.layout.matrix(solid.element_matrices(np.zeros_like(solid.points))).toarray()
    mesh = MeshTri(np.ascontiguousarray(solid.points.T), np.ascontiguousarray(solid.triangles.T))
    basis = Basis(mesh, ElementVector(ElementTriP1()))
    expected = linear_elasticity(LAME, SHEAR).assemble(basis).toarray()
    order = basis.nodal_dofs.T.reshape(-1)
    np.testing.assert_allclose(found, expected[np.ix_(order, order)], atol=1e-12)


def test_uniaxial_tension_is_homogeneous_and_exact():
    """Stretches of a block on rollers, from the two equations of its stress."""
    solid = square(lambda x, y: (x == 0 and y == 0, y == 0))
    traction = 0.8
    top = np.flatnonzero(solid.points[:, 1] == 1)
    line = top[np.argsort(solid.points[top, 0])]
    found, _ = solid.equilibrium(solid.pull(line, traction))

    def stress(stretches):
        volume = LAME * np.log(stretches[0] * stretches[1])
        return [SHEAR * (s - 1 / s) + volume / s for s in stretches]

    stretches = fsolve(lambda s: np.subtract(stress(s), [0, traction]), [0.8, 1.3], xtol=1e-13)
    assert stretches[1] > 1.2 and stretches[0] < 0.9
    np.testing.assert_allclose(found, solid.points * (stretches - 1), atol=1e-9)
    j = np.prod(stretches)
    across = LAME * np.log(j) / j
    along = traction / stretches[0]  # per deformed area
    von_mises = np.sqrt((along**2 + across**2 + (along - across) ** 2) / 2)
    np.testing.assert_allclose(solid.von_mises(found), von_mises, rtol=1e-8)


def test_a_rotation_costs_nothing():
    solid = square(lambda x, y: (False, False))
    turn = np.array([[np.cos(1.0), np.sin(1.0)], [-np.sin(1.0), np.cos(1.0)]])
    u = solid.points @ turn - solid.points
    np.testing.assert_allclose(solid.internal_forces(u), 0, atol=1e-13)
    np.testing.assert_allclose(solid.von_mises(u), 0, atol=1e-6)


def test_newton_converges_quadratically_to_the_equilibrium():
    solid = holed()
    load = solid.pull(GRID.upper_edge, rubber.TRACTION[1])
    np.testing.assert_allclose(load.sum(axis=0), [0, 0.25 * 100])
    u, residuals = solid.equilibrium(load)
    assert u[GRID.upper_edge, 1].max() > 15  # mm: far from small strains
    assert len(residuals) <= 8 and residuals[-1] < rubber.TOLERANCE
    before, after = residuals[-3], residuals[-2]
    assert before < 0.01 and after < 10 * before**2
    forces = solid.internal_forces(u)
    held = np.zeros(len(forces), dtype=bool)
    held[GRID.lower_edge] = True
    np.testing.assert_allclose(forces[~held], load[~held], atol=1e-7)
    np.testing.assert_allclose(forces[held].sum(axis=0), [0, -25], atol=1e-6)


def test_small_traction_gives_the_linear_displacement():
    solid = holed()
    load = solid.pull(GRID.upper_edge, 1e-3)
    found, _ = solid.equilibrium(load)
    matrix = solid.layout.matrix(solid.element_matrices(np.zeros_like(load)))
    free = solid.layout.free
    linear = factorised(matrix).solve(load.reshape(-1)[free])
    np.testing.assert_allclose(found.reshape(-1)[free], linear, atol=0.01 * linear.max())


def test_a_load_that_is_too_large_is_reported():
    solid = holed()
    with pytest.raises(NotSolvedError, match=r"(converge|turned over) at \d+% of the load"):
        solid.equilibrium(-solid.pull(GRID.upper_edge, 50.0))


def test_data_set(small):
    assert [len(small.rows(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    described = [(f.name, f.unit) for f in (*small.coordinates, *small.inputs, *small.targets)]
    assert described == [
        ("x", "mm"), ("y", "mm"), ("traction", "MPa"),
        ("displacement_x", "mm"), ("displacement_y", "mm"), ("von_mises_stress", "MPa"),
    ]  # fmt: skip
    assert small.aligned and not small.skipped and "not comparable" in small.note
    for sample in small.items:
        assert sample.pos.shape == (972, 2) and sample.cells["quad"].shape == (918, 4)
        assert sample.pos.min() >= 0 and sample.pos.max() <= 100
        assert (sample.x == sample.x[0]).all() and 0.05 <= sample.x[0, 0] <= 0.25
        assert not sample.y[GRID.lower_edge, :2].any()
        upper = sample.y[GRID.upper_edge, 1]
        assert 0 < upper.min() and upper.max() < 50
        assert sample.y[:, 2].min() > 0
        assert sample.y[:, 2].max() > 1.5 * sample.x[0, 0]


def test_a_plate_depends_on_seed_and_number_only(small):
    more = rubber.load("plates", sizes=(3, 1, 1))
    for one, other in zip(small.items, more.items, strict=False):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.y, other.y)
    assert rubber.load("plates", sizes=(2, 1, 1), seed=1).fingerprint() != small.fingerprint()


def test_kept_plates_are_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    first = rubber.load("plates", sizes=(2, 0, 0))
    assert len(list(tmp_path.iterdir())) == 1
    assert rubber.load("plates", sizes=(2, 0, 0)).fingerprint() == first.fingerprint()
