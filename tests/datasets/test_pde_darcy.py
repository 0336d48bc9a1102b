"""Darcy flow: meshes, the random medium, and the solver against known solutions."""

import numpy as np
import pytest

from matattn import cache
from matattn.datasets.pde import darcy
from matattn.datasets.pde.generated import random_mesh


@pytest.fixture(scope="module")
def small():
    return darcy.load("flows", sizes=(4, 1, 1))


def test_second_order_against_a_manufactured_solution():
    """u = sin(pi x) sin(2 pi y) in a medium of permeability 1 + x + y."""

    def exact(x, y):
        return np.sin(np.pi * x) * np.sin(2 * np.pi * y)

    def permeability(x, y):
        return 1 + x + y

    def source(x, y):
        d_x = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        d_y = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        return 5 * np.pi**2 * permeability(x, y) * exact(x, y) - d_x - d_y

    errors = []
    for nodes in (17, 33, 65):
        points, triangles = random_mesh(np.random.default_rng(0), nodes, nodes)
        found = darcy.solve(points, triangles, permeability, source)
        errors.append(np.linalg.norm(found - exact(*points.T)) / np.linalg.norm(exact(*points.T)))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 1.8).all() and (orders < 2.3).all()
    assert errors[1] < 0.01


def test_uniform_medium_has_the_pressure_of_the_series():
    """The torsion function of the square has 0.0736714 in its centre."""
    points, triangles = random_mesh(np.random.default_rng(0), 41, 41)
    points = points.copy()
    centre = np.argmin(np.linalg.norm(points - 0.5, axis=1))
    points[centre] = 0.5
    found = darcy.solve(points, triangles, lambda x, y: np.full_like(x, 3.0))
    np.testing.assert_allclose(3 * found[centre], 0.0736714, rtol=2e-3)


def test_pressure_of_two_layers_lies_between_those_of_one():
    """More permeability means less pressure, and the permeable half has the smaller part of it."""
    points, triangles = random_mesh(np.random.default_rng(3), 33, 33)

    def layers(x, y):
        return np.where(x > 0.5, darcy.HIGH, darcy.LOW)

    u = darcy.solve(points, triangles, layers)
    left, right = points[:, 0] < 0.45, points[:, 0] > 0.55
    bounds = [0.0736714 / a for a in (darcy.HIGH, darcy.LOW)]
    assert bounds[0] < u.max() < bounds[1]
    assert u[left].max() > 1.5 * u[right].max()


def test_random_field_has_its_covariance():
    """Half of the medium is permeable on average, and neighbours are alike."""
    x = np.linspace(0, 1, 21)
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    media = np.array(
        [darcy.random_permeability(np.random.default_rng([0, n]))(*grid.T) for n in range(200)]
    )
    assert set(np.unique(media)) == {darcy.LOW, darcy.HIGH}
    assert abs((media == darcy.HIGH).mean() - 0.5) < 0.03
    square = media.reshape(200, 21, 21)
    near, far = (square[:, :, 10] == square[:, :, k] for k in (11, 20))
    assert near.mean() > 0.85 > 0.6 > far.mean()


def test_data_set(small):
    assert [len(small.rows(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    assert [f.name for f in small.coordinates] == ["x", "y"]
    assert [f.name for f in small.inputs] == ["permeability"]
    assert [f.name for f in small.targets] == ["pressure"]
    assert not small.aligned and not small.skipped and "not comparable" in small.note
    assert len({len(sample.pos) for sample in small.items}) > 1
    for sample in small.items:
        assert sample.pos.dtype == sample.x.dtype == sample.y.dtype == np.float32
        assert sample.pos.min() == 0 and sample.pos.max() == 1
        assert set(np.unique(sample.x)) == {darcy.LOW, darcy.HIGH}
        boundary = ((sample.pos == 0) | (sample.pos == 1)).any(axis=1)
        assert not sample.y[boundary].any() and sample.y[~boundary].min() > 0
        assert 0.0736 / darcy.HIGH < sample.y.max() < 0.0737 / darcy.LOW
        a, b, c = sample.pos[sample.cells["triangle"]].astype(float).swapaxes(0, 1)
        areas = np.linalg.det(np.stack([b - a, c - a], axis=1)) / 2
        assert areas.min() > 0
        np.testing.assert_allclose(areas.sum(), 1, atol=1e-5)


def test_a_flow_depends_on_seed_and_number_only(small):
    more = darcy.load("flows", sizes=(6, 1, 1))
    for one, other in zip(small.items, more.items, strict=False):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.y, other.y)
    assert darcy.load("flows", sizes=(4, 1, 1), seed=1).fingerprint() != small.fingerprint()


def test_kept_flows_are_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    first = darcy.load("flows", sizes=(2, 0, 0))
    assert len(list(tmp_path.iterdir())) == 1
    assert darcy.load("flows", sizes=(2, 0, 0)).fingerprint() == first.fingerprint()
