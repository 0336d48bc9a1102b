"""DrivAerML's presampled points, on small files in their format."""

import numpy as np
import pytest

from matattn.datasets import drivaerml
from matattn.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(drivaerml.POINTS, "40k", 6)
    random = np.random.default_rng(0)
    for run, part in ((9, "train"), (10, "train"), (100, "train"), (7, "test")):
        (tmp_path / part).mkdir(exist_ok=True)
        centers, fields = random.random((6, 3)), random.random((6, 4)) + run
        np.savez(
            tmp_path / part / f"run_{run}.npz", surface_mesh_centers=centers, surface_fields=fields
        )
    return tmp_path


def test_official_format(folder):
    data = drivaerml.load("d", str(folder), sizes=[3, 0, 1])
    assert [item.id for item in data.items] == ["run_9", "run_10", "run_100", "run_7"]
    assert data.split.tolist() == ["train"] * 3 + ["test"]
    assert data.items[1].y.shape == (6, 1) and int(data.items[1].y[0, 0]) == 10
    assert [(f.unit, f.scaling) for f in data.coordinates] == [("m", "range")] * 3
    assert data.targets[0].unit == "m^2/s^2" and not data.aligned


def test_mistakes(folder, tmp_path):
    with pytest.raises(DataError, match="data.points='40000': choose 10k, 40k"):
        drivaerml.load("d", str(folder), "40000")
    with pytest.raises(DataError, match=r"train/val/test have \[3, 0, 1\] rows, .* \[400, 0, 84\]"):
        drivaerml.load("d", str(folder), sizes=[400, 0, 84])
    with pytest.raises(DataError, match=r"run_9.npz: surface_mesh_centers: .* \(6, 3\), .*10000"):
        drivaerml.load("d", str(folder), "10k")
    with pytest.raises(DataError, match="missing/train: no such .*presampled_<points>.*MATATTN"):
        drivaerml.load("d", str(folder / "missing"))
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "empty/test").mkdir()
    with pytest.raises(DataError, match="d: no usable mesh"):
        drivaerml.load("d", str(tmp_path / "empty"))
