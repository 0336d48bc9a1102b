"""Pools of structures, and which of them are nearest."""

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from matattn.errors import DataError, MatattnError
from matattn.workflows.structures import embed
from matattn.workflows.structures.pool import Pool
from matattn.workflows.structures.predict import Predictor


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load("mp-formation-energy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    for name, a in (("NaCl", 5.6), ("NaBr", 6.0), ("MgO", 4.2)):
        ions = [name[:2], name[2:]]
        Structure.from_spacegroup(225, Lattice.cubic(a), ions, [[0] * 3, [0.5] * 3]).to(
            str(folder / f"{name}.cif")
        )
    (folder / "bad.cif").write_text("data_x\n")
    return folder


@pytest.fixture(scope="module")
def pool(predictor, folder):
    return Pool.read(predictor, "model", [str(folder)])


def test_a_pool_holds_what_the_model_can_read(pool):
    assert [row["id"] for row in pool.names] == ["MgO", "NaBr", "NaCl"]
    assert pool.features.shape[0] == 3 and pool.left_out == 1


def test_the_nearest_is_found_exactly(predictor, pool):
    distances, indices = pool.nearest(predictor, pool.features[2:], 3)
    assert [pool.names[n]["id"] for n in indices[0]] == ["NaCl", "NaBr", "MgO"]
    points = predictor.uncertainty.distance.points(pool.features)
    expected = (points[2] - points[indices[0]]).norm(dim=1)
    torch.testing.assert_close(distances[0], expected)
    assert distances[0][0] == 0


def test_another_cell_of_a_crystal_is_no_distance_away(predictor, folder, pool):
    primitive = Structure.from_file(folder / "NaCl.cif").get_primitive_structure()
    (row,) = predictor.embed([primitive * (2, 1, 1)])
    distances, indices = pool.nearest(predictor, torch.from_numpy(row["features"]), 1)
    assert pool.names[indices[0, 0]]["id"] == "NaCl" and distances[0, 0] < 1e-3


def test_a_model_without_calibration_measures_in_the_spread_of_the_pool(predictor, pool):
    bare = Predictor(predictor.network, predictor.config)
    distances, _ = pool.nearest(bare, pool.features[:1], 2)
    spread = pool.features.std(0, correction=0).clamp(min=1e-9)
    others = ((pool.features[0] - pool.features[1:]) / spread).norm(dim=1)
    torch.testing.assert_close(distances[0, 1], others.min())


@pytest.fixture
def stored(predictor, folder, tmp_path):
    path = tmp_path / "features.npz"
    names = sorted(folder.glob("*.cif"))
    rows = predictor.embed([str(path) for path in names])
    rows = [{"id": p.stem, "path": str(p)} | row for p, row in zip(names, rows, strict=True)]
    embed.write(path, rows, "model")
    return path


def test_stored_features_are_the_same_pool(predictor, pool, stored):
    again = Pool.read(predictor, "model", [str(stored)])
    assert [r["id"] for r in again.names] == [r["id"] for r in pool.names]
    torch.testing.assert_close(again.features, pool.features, rtol=1e-5, atol=1e-6)
    assert again.left_out == 1


def test_features_of_another_model_are_refused(predictor, stored):
    with pytest.raises(DataError, match="features of another model"):
        Pool.read(predictor, "other", [str(stored)])


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_what_holds_no_features_is_refused(predictor, tmp_path, content):
    path = tmp_path / "x.npz"
    if content is None:
        np.savez(path, features=np.zeros((1, 2)))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="holds no features of `matattn embed`"):
        Pool.read(predictor, "model", [str(path)])


def test_an_absent_file_is_told(predictor, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Pool.read(predictor, "model", [str(tmp_path / "x.npz")])


def test_an_empty_pool_is_told(predictor, folder):
    with pytest.raises(MatattnError, match="holds no structure that the model can read"):
        Pool.read(predictor, "model", [str(folder / "bad.cif")])
