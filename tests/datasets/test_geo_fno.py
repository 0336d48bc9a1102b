"""Geo-FNO's files, on small ones in their format."""

import numpy as np
import pytest
from scipy.io import savemat

from matattn.datasets import geo_fno
from matattn.errors import DataError


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_elasticity(tmp_path, random):
    xy, sigma = random.random((7, 2, 12)), random.random((7, 12))
    (tmp_path / "Meshes").mkdir()
    np.save(tmp_path / "Meshes/Random_UnitCell_XY_10.npy", xy)
    np.save(tmp_path / "Meshes/Random_UnitCell_sigma_10.npy", sigma)
    data = geo_fno.load_elasticity("e", str(tmp_path), (12, 7), (5, 1, 3))
    assert data.split.tolist() == ["train"] * 5 + ["val"] + ["test"] * 3
    assert [item.id[-2:] for item in data.items] == ["00", "01", "02", "03", "04", "05", "09",
                                                     "10", "11"]  # fmt: skip
    np.testing.assert_allclose(data.items[8].pos, xy[:, :, 11], rtol=1e-6)
    np.testing.assert_allclose(data.items[8].y[:, 0], sigma[:, 11], rtol=1e-6)
    assert [field.scaling for field in data.coordinates] == ["none", "none"]
    assert not data.aligned and data.grid is None and data.items[0].cells == {}
    with pytest.raises(DataError, match=r"XY_10.npy: has the shape \(7, 2, 12\), .* \(972, 2, 2"):
        geo_fno.load_elasticity("e", str(tmp_path))
    (tmp_path / "Meshes/Random_UnitCell_sigma_10.npy").unlink()
    with pytest.raises(DataError, match="sigma_10.npy: no such file .*PDESurrogates.*MATATTN_DATA"):
        geo_fno.load_elasticity("e", str(tmp_path), (12, 7), (5, 1, 3))


@pytest.mark.parametrize(
    "load, names, channel, target, scaling",
    [
        (geo_fno.load_pipe, "Pipe_{}.npy", 0, "velocity_x", "standard"),
        (geo_fno.load_airfoil, "NACA_Cylinder_{}.npy", 4, "mach_number", "none"),
    ],
)
def test_structured(tmp_path, random, load, names, channel, target, scaling):
    x, y = random.random((2, 11, 4, 3))
    q = random.random((11, 5, 4, 3))
    for key, array in (("X", x), ("Y", y), ("Q", q)):
        np.save(tmp_path / names.format(key), array)
    data = load("s", str(tmp_path), (4, 3), (6, 0, 2))
    assert data.split.tolist() == ["train"] * 6 + ["test"] * 2
    assert data.grid == (4, 3) and data.aligned and data.targets[0].name == target
    assert {field.scaling for field in data.coordinates} == {scaling}
    sample = data.items[7]
    assert sample.id.endswith("-0007") and sample.cells["quad"].shape == (6, 4)
    node = 2 * 3 + 1  # row 2, column 1
    assert sample.pos[node].tolist() == [np.float32(x[7, 2, 1]), np.float32(y[7, 2, 1])]
    assert sample.y[node].tolist() == [np.float32(q[7, channel, 2, 1])]
    with pytest.raises(DataError, match=r"X.npy: has 11 samples, the split \[10, 0, 2\] needs 12"):
        load("s", str(tmp_path), (4, 3), (10, 0, 2))
    with pytest.raises(DataError, match=r"X.npy: has the shape \(11, 4, 3\), the published"):
        load("s", str(tmp_path))
    np.save(tmp_path / names.format("Y"), y[:9])
    with pytest.raises(DataError, match=r"Y.npy: has the shape \(9, 4, 3\)"):
        load("s", str(tmp_path), (4, 3), (6, 0, 2))


def test_too_few_channels(tmp_path, random):
    for key, shape in (("X", (3, 2, 2)), ("Y", (3, 2, 2)), ("Q", (3, 4, 2, 2))):
        np.save(tmp_path / f"NACA_Cylinder_{key}.npy", random.random(shape))
    with pytest.raises(DataError, match="Q.npy: has 4 channels, expected at least 5"):
        geo_fno.load_airfoil("a", str(tmp_path), (2, 2), (1, 0, 1))


def test_plasticity(tmp_path, random):
    die, output = random.random((9, 4)), random.random((9, 4, 3, 5, 4))
    savemat(tmp_path / "plas_N987_T20.mat", {"input": die, "output": output})
    data = geo_fno.load_plasticity("p", str(tmp_path), None, (9, 4, 3, 5), (5, 0, 2))
    assert len(data.items) == 7 * 5 and data.grid == (4, 3) and data.aligned
    simulations = [item.id.split("-")[1] for item in data.items]
    parts = {(key, part) for key, part in zip(simulations, data.split, strict=True)}
    assert parts == {(f"000{n}", "train") for n in range(5)} | {("0007", "test"), ("0008", "test")}
    sample = {item.id: item for item in data.items}["plasticity-0008-t04"]
    node = 2 * 3 + 1  # row 2, column 1
    np.testing.assert_allclose(sample.pos[node], [2 / 3, 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(sample.x[node], [die[8, 2], 3 / 4], rtol=1e-6)
    np.testing.assert_allclose(sample.y[node], output[8, 2, 1, 3], rtol=1e-6)
    last = geo_fno.load_plasticity("p", str(tmp_path), [5], (9, 4, 3, 5), (5, 0, 2))
    assert len(last.items) == 7 and (last.items[0].x[:, 1] == 1).all()
    for times in ([0], [6], []):
        with pytest.raises(DataError, match="data.times=.*: choose steps from 1 to 5"):
            geo_fno.load_plasticity("p", str(tmp_path), times, (9, 4, 3, 5), (5, 0, 2))
    with pytest.raises(DataError, match="plas_N987_T20.mat: input: has the shape"):
        geo_fno.load_plasticity("p", str(tmp_path))
