"""Heat under a moving laser: the solver against known solutions, and the snapshots."""

import numpy as np
import pytest

from matattn import cache
from matattn.datasets.pde import moving_laser_heat as heat
from matattn.datasets.pde.generated import random_mesh
from matattn.datasets.pde.moving_laser_heat import Scan, Sheet

DIFFUSIVITY = heat.CONDUCTIVITY / heat.HEAT_CAPACITY  # mm^2/s
WAVE = np.pi / heat.LENGTH


def sheet(columns, rows):
    size = (heat.LENGTH, heat.WIDTH)
    points, triangles = random_mesh(np.random.default_rng(0), columns, rows, size)
    return points, Sheet(points, triangles)


@pytest.fixture(scope="module")
def small():
    return heat.load("scans", sizes=(3, 1, 1))


def decayed(points, plate, time_step, steps):
    """A cosine along the sheet after some time without heating."""
    start = np.cos(2 * WAVE * points[:, 0])
    return plate.march(time_step, np.zeros((steps, len(points))), start)[-1]


def test_second_order_in_space():
    """The decay of an eigenmode against that of backward Euler without an error in space."""
    errors = []
    for nodes in (11, 21, 41):
        points, plate = sheet(nodes, nodes)
        factor = (1 + DIFFUSIVITY * (2 * WAVE) ** 2 * 0.5) ** -10
        exact = factor * np.cos(2 * WAVE * points[:, 0])
        found = decayed(points, plate, 0.5, 10)
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 1.6).all() and errors[-1] < 0.01


def test_first_order_in_time():
    points, plate = sheet(81, 9)
    exact = np.exp(-DIFFUSIVITY * (2 * WAVE) ** 2 * 8) * np.cos(2 * WAVE * points[:, 0])
    errors = [
        np.linalg.norm(decayed(points, plate, 8 / steps, steps) - exact) / np.linalg.norm(exact)
        for steps in (4, 8, 16)
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 0.8).all() and (orders < 1.2).all()


def test_the_sheet_holds_the_heat_that_it_absorbed():
    _, plate = sheet(52, 26)
    scan = Scan(power=200.0, speed=10.0, first_track=5.0, tracks=2)
    times = scan.time_step * np.arange(1, scan.steps + 1)
    assert times[-1] == pytest.approx(6.0)
    heating = plate.heating(scan.power, scan.laser(times))
    stored = plate.march(scan.time_step, heating) @ plate.capacity
    np.testing.assert_allclose(stored, np.cumsum(heating.sum(axis=1)) * scan.time_step, rtol=1e-9)
    np.testing.assert_allclose(stored, heat.ABSORPTIVITY * 200.0 * times, rtol=5e-3)
    volume = heat.LENGTH * heat.WIDTH * heat.THICKNESS
    np.testing.assert_allclose(plate.capacity.sum(), volume * heat.HEAT_CAPACITY)


def test_moving_source_in_an_infinite_sheet():
    """Green's function, integrated along the track, while the edges are far away."""
    points, plate = sheet(101, 51)
    end, power, speed = 0.6, 200.0, 10.0
    times = np.linspace(0, end, 121)[1:]
    laser = np.stack([17 + speed * times, np.full_like(times, 10.0)], axis=1)
    found = plate.march(times[0], plate.heating(power, laser))[-1]
    middle = np.linspace(0, end, 2001)[:-1] + end / 4000
    spread = heat.BEAM_RADIUS**2 / 4 + 2 * DIFFUSIVITY * (end - middle)
    centre = np.stack([17 + speed * middle, np.full_like(middle, 10.0)], axis=1)
    distance = ((points[:, None] - centre) ** 2).sum(axis=-1)
    kernel = np.exp(-distance / (2 * spread)) / (2 * np.pi * spread)
    rate = heat.ABSORPTIVITY * power / (heat.HEAT_CAPACITY * heat.THICKNESS)
    exact = rate * kernel.mean(axis=1) * end
    assert 100 < exact.max() < 1000
    assert np.linalg.norm(found - exact) < 0.015 * np.linalg.norm(exact)
    np.testing.assert_allclose(found, exact, atol=0.03 * exact.max())


def test_tracks():
    scan = Scan(power=200.0, speed=10.0, first_track=5.0, tracks=2)
    places = scan.laser(np.array([0.0, 1.5, 2.9, 3.1, 6.0]))
    expected = [[5, 5], [20, 5], [34, 5], [34, 8], [5, 8]]
    np.testing.assert_allclose(places, expected)


def test_data_set(small):
    assert [len(small.rows(split)) for split in ("train", "val", "test")] == [12, 4, 4]
    described = [(f.name, f.unit) for f in (*small.coordinates, *small.inputs, *small.targets)]
    assert described == [
        ("x", "mm"), ("y", "mm"),
        ("time", "s"), ("laser_power", "W"), ("scan_speed", "mm/s"),
        ("laser_x", "mm"), ("laser_y", "mm"),
        ("temperature_rise", "K"),
    ]  # fmt: skip
    assert not small.aligned and not small.skipped
    assert "not comparable" in small.note and "in one split" in small.note
    assert len({len(sample.pos) for sample in small.items}) > 1
    scans = {}
    for sample, split in zip(small.items, small.split, strict=True):
        scans.setdefault(sample.id.split("-step")[0], set()).add(str(split))
        assert sample.pos.min() == 0 and (sample.pos.max(axis=0) == [40, 20]).all()
        assert (sample.x == sample.x[0]).all()
        time, power, speed, x, y = sample.x[0]
        assert 100 <= power <= 400 and 5 <= speed <= 20 and 5 <= x <= 35 and 4 <= y <= 16
        assert 0 < time * speed <= 90.01
        assert -0.05 < sample.y.min() and 20 < sample.y.max() < 1400
        hottest = sample.pos[sample.y.argmax()]
        assert np.linalg.norm(hottest - [x, y]) < 5
    assert len(scans) == 5 and all(len(splits) == 1 for splits in scans.values())


def test_a_scan_depends_on_seed_and_number_only(small):
    more = heat.load("scans", sizes=(4, 1, 1))
    for one, other in zip(small.items, more.items, strict=False):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.y, other.y)
    assert heat.load("scans", sizes=(3, 1, 1), seed=1).fingerprint() != small.fingerprint()


def test_kept_scans_are_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    first = heat.load("scans", sizes=(2, 0, 0))
    assert len(list(tmp_path.iterdir())) == 1
    assert heat.load("scans", sizes=(2, 0, 0)).fingerprint() == first.fingerprint()
