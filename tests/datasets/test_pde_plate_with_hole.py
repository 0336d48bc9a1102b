"""Plates with a hole: their meshes, and the elasticity solver against known solutions."""

import numpy as np
import pytest
from scipy.interpolate import LinearNDInterpolator

from matattn import cache
from matattn.datasets.pde import plate_with_hole as plate
from matattn.datasets.pde.plate_with_hole import LAME, POISSON, TRACTION, ElasticBody, OGrid

CIRCLE = np.zeros((2, plate.WAVES + 1))  # g = 0: a circle of radius 0.3
SHEAR = LAME[1]


@pytest.fixture(scope="module")
def grid():
    return OGrid(sides=(14, 13), rings=18)


@pytest.fixture(scope="module")
def small():
    return plate.load("plates", sizes=(2, 1, 1))


def places(body, points):
    """Vertices and mid-edges [V, 2]."""
    return np.concatenate([points, points[body.edges].mean(axis=1)])


def kirsch(at, radius=0.3, stress=1.0):
    """Displacements around a round hole in an infinite body under tension along x."""
    x, y = (at - 0.5).T
    r, angle, kappa = np.hypot(x, y) / radius, np.arctan2(y, x), 3 - 4 * POISSON
    u = r * (kappa + 1) * np.cos(angle) - 2 / r**3 * np.cos(3 * angle)
    u += 2 / r * ((1 + kappa) * np.cos(angle) + np.cos(3 * angle))
    v = r * (kappa - 3) * np.sin(angle) - 2 / r**3 * np.sin(3 * angle)
    v += 2 / r * ((1 - kappa) * np.sin(angle) + np.sin(3 * angle))
    return stress * radius / (8 * SHEAR) * np.stack([u, v], axis=1)


def ring(grid, number):
    return number * grid.angles + np.arange(grid.angles)


def test_patch(grid):
    """A linear displacement on the boundary gives it everywhere, and its constant stress."""
    points = grid.points(plate.random_hole(np.random.default_rng(1)))
    body = ElasticBody(grid.triangles, np.append(ring(grid, 0), ring(grid, grid.rings - 1)))
    exact = places(body, points) @ np.array([[2e-3, -1e-3], [4e-3, 3e-3]])
    found = body.solve(points, np.zeros_like(exact), exact)
    np.testing.assert_allclose(found, exact, atol=1e-14)
    pressure, xx, yy = LAME[0] * 5e-3, 2 * SHEAR * 2e-3, 2 * SHEAR * 3e-3
    xy = SHEAR * 3e-3
    deviator = np.array([xx, yy, 0]) - (xx + yy) / 3
    von_mises = np.sqrt(1.5 * (deviator @ deviator + 2 * xy**2))
    assert pressure > 0  # it must not matter
    np.testing.assert_allclose(body.von_mises(points, found), von_mises, rtol=1e-10)


def test_third_order_against_kirsch():
    """Kirsch's displacements on both boundaries: the error inside falls with h^3 or faster."""
    errors = []
    for factor in (1, 2):
        grid = OGrid((8 * factor, 8 * factor), 8 * factor + 1)
        points = grid.points(CIRCLE)
        body = ElasticBody(grid.triangles, np.append(ring(grid, 0), ring(grid, grid.rings - 1)))
        exact = kirsch(places(body, points))
        found = body.solve(points, np.zeros_like(exact), exact)
        errors.append(np.sqrt(np.mean((found - exact) ** 2)))
    assert 2.8 < np.log2(errors[0] / errors[1]) < 4.5


def test_stress_concentration_at_a_free_hole():
    """Beside a round hole the hoop stress is three times that far away."""
    errors = []
    for factor in (1, 2, 4):
        grid = OGrid((14 * factor, 14 * factor), 17 * factor + 1)
        points = grid.points(CIRCLE)
        body = ElasticBody(grid.triangles, ring(grid, grid.rings - 1))
        exact = kirsch(places(body, points))
        stress = body.von_mises(points, body.solve(points, np.zeros_like(exact), exact))
        top = np.argmin(np.linalg.norm(points - [0.5, 0.8], axis=1))
        expected = 3 * np.sqrt(1 - POISSON + POISSON**2)
        errors.append(abs(stress[top] / expected - 1))
    assert errors[0] > errors[1] > errors[2] and errors[0] < 0.05 and errors[2] < 0.01


def test_matrix_and_load_are_those_of_scikit_fem(grid):
    from skfem import (
        Basis,
        ElementTriP2,
        ElementVector,
        FacetBasis,
        LinearForm,
        MeshTri,
        condense,
        solve,
    )
    from skfem.models.elasticity import linear_elasticity

    points = grid.points(plate.random_hole(np.random.default_rng(2)))
    body = plate.elastic_body(grid)
    found = body.solve(points, TRACTION * body.pull(points, grid.upper_edge))
    mesh = MeshTri(np.ascontiguousarray(points.T), np.ascontiguousarray(grid.triangles.T))
    element = ElementVector(ElementTriP2())
    basis = Basis(mesh, element)
    upper = FacetBasis(mesh, element, facets=mesh.facets_satisfying(lambda x: x[1] > 1 - 1e-9))
    force = TRACTION * LinearForm(lambda v, w: v[1]).assemble(upper)
    held = basis.get_dofs(mesh.facets_satisfying(lambda x: x[1] < 1e-9)).all()
    u = solve(*condense(linear_elasticity(*LAME).assemble(basis), force, D=held))
    expected = np.concatenate([u[basis.nodal_dofs].T, u[basis.facet_dofs].T])
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_the_clamp_holds_what_the_traction_pulls(grid):
    points = grid.points(plate.random_hole(np.random.default_rng(3)))
    body = plate.elastic_body(grid)
    load = TRACTION * body.pull(points, grid.upper_edge)
    np.testing.assert_allclose(load.sum(axis=0), [0, TRACTION], atol=1e-12)
    u = body.solve(points, load)
    forces = np.zeros_like(u)
    pushed = np.einsum("epqij,ejq->eip", body.element_matrices(points), u[body.nodes])
    np.add.at(forces, body.nodes, pushed)
    np.testing.assert_allclose(forces[grid.lower_edge].sum(axis=0)[0], 0, atol=1)
    held = np.isclose(places(body, points)[:, 1], 0)
    np.testing.assert_allclose(forces[held].sum(axis=0), [0, -TRACTION], atol=1e-8)
    np.testing.assert_allclose(forces[~held], load[~held], atol=1e-8)


def test_data_set(small):
    assert [len(small.rows(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert [(f.name, f.unit) for f in small.coordinates] == [("x", "mm"), ("y", "mm")]
    assert [(f.name, f.unit) for f in small.targets] == [("von_mises_stress", "MPa")]
    assert small.inputs == () and small.aligned and not small.skipped
    assert "not comparable" in small.note
    for sample in small.items:
        assert sample.pos.shape == (972, 2) and sample.cells["quad"].shape == (918, 4)
        assert sample.pos.dtype == sample.y.dtype == np.float32
        assert sample.pos.min() >= 0 and sample.pos.max() <= 100
        radius = np.linalg.norm(sample.pos[:54] - 50, axis=1)
        assert 20 <= radius.min() and radius.max() <= 40
        assert 0 < sample.y.min() < TRACTION < sample.y.max() < 40 * TRACTION


def area(sample):
    (nodes,) = sample.cells.values()
    x, y = sample.pos[nodes].astype(float).transpose(2, 0, 1)
    return (x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1) / 2


@pytest.mark.parametrize("make", [plate.aligned_plate, plate.ragged_plate])
def test_cells_cover_the_plate_but_the_hole(make):
    for run in range(3):
        (sample,) = make(0, run)
        areas = area(sample)
        assert areas.min() > 0
        angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
        rng = np.random.default_rng([0, run])
        hole = np.pi * np.mean(plate.hole_radius(plate.random_hole(rng), angle) ** 2)
        np.testing.assert_allclose(areas.sum() / 1e4, 1 - hole, rtol=0.01)


def test_a_plate_depends_on_seed_and_number_only(small):
    again = plate.load("plates", sizes=(4, 1, 1))
    other = plate.load("plates", sizes=(2, 1, 1), seed=1)
    for n, sample in enumerate(small.items):
        np.testing.assert_array_equal(sample.pos, again.items[n].pos)
        np.testing.assert_array_equal(sample.y, again.items[n].y)
        assert not np.array_equal(sample.pos, other.items[n].pos)


def test_kept_plates_are_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    first = plate.load("plates", sizes=(2, 0, 0), ragged=True)
    assert len(list(tmp_path.iterdir())) == 1
    assert plate.load("plates", sizes=(2, 0, 0), ragged=True).fingerprint() == first.fingerprint()
    plate.load("plates", sizes=(2, 0, 0))
    assert len(list(tmp_path.iterdir())) == 2


def test_ragged_meshes_differ_and_their_stress_is_the_same():
    ragged = plate.load("plates", sizes=(6, 0, 0), ragged=True)
    assert not ragged.aligned
    sizes = [len(sample.pos) for sample in ragged.items]
    assert len(set(sizes)) > 1 and 700 < min(sizes) and max(sizes) < 1400
    for run, sample in enumerate(ragged.items):
        (aligned,) = plate.aligned_plate(0, run)
        assert set(np.unique(sample.cells["triangle"])) == set(range(len(sample.pos)))
        rays = np.arctan2(*(sample.pos - 50).T)
        assert (np.diff(rays) > 0).mean() < 0.6  # in no order
        interpolated = LinearNDInterpolator(aligned.pos, aligned.y)(sample.pos)
        inside = np.isfinite(interpolated)  # rounding leaves out nodes of the boundary
        assert inside.mean() > 0.95
        difference = np.linalg.norm((sample.y - interpolated)[inside]) / np.linalg.norm(sample.y)
        assert difference < 0.12  # two meshes, each some 5 % from the limit of fine ones
