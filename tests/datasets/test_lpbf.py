"""The LPBF data set, on small files in its format."""

import sys

import numpy as np
import pytest

from matattn.datasets import lpbf
from matattn.errors import DataError


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def write(path, nodes, **change):
    random = np.random.default_rng(nodes)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "pos": random.random((nodes, 3)) * 30,
        "edge_index": np.zeros((2, 5), dtype=np.int64),
        "elems": np.arange(8)[None],
        "temp": np.ones((nodes, 1)),
        "disp": random.random((nodes, 3)) * 0.3,
        "vmstr": np.ones((nodes, 1)),
        "_metadata": np.array([Bomb()], dtype=object),
    }
    np.savez_compressed(path, **(arrays | change))


@pytest.fixture
def folder(tmp_path):
    for number, part in enumerate(("train", "train", "test")):
        write(tmp_path / part / f"case_{number}.npz", 8 + number)
    return tmp_path


def test_official_format(folder):
    data = lpbf.load("l", str(folder), [2, 0, 1])
    assert [item.id for item in data.items] == ["case_0", "case_1", "case_2"]
    assert data.split.tolist() == ["train", "train", "test"]
    with np.load(folder / "train/case_1.npz") as arrays:
        np.testing.assert_allclose(data.items[1].y[:, 0], arrays["disp"][:, 2], rtol=1e-6)
        np.testing.assert_allclose(data.items[1].pos, arrays["pos"], rtol=1e-6)
    assert data.items[1].cells["hexahedron"].tolist() == [list(range(8))]
    assert [(f.unit, f.scaling) for f in data.coordinates] == [("mm", 30), ("mm", 30), ("mm", 60)]
    assert (data.targets[0].name, data.targets[0].unit) == ("displacement_z", "mm")


@pytest.mark.parametrize("place", ["{}.parquet", "data/{}-00000-of-00001.parquet"])
def test_an_index_names_the_files(folder, place):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (folder / "data").mkdir()
    for part, cases in (("train", [1]), ("test", [2])):
        files = [f"{part}/case_{case}.npz" for case in cases]
        index = pandas.DataFrame({"case_id": cases, "file": files, "num_nodes": 8})
        index.to_parquet(folder / place.format(part))
    data = lpbf.load("l", str(folder), [1, 0, 1])
    assert [item.id for item in data.items] == ["case_1", "case_2"]
    (folder / place.format("train")).write_bytes(b"damaged")
    with pytest.raises(DataError, match="parquet: cannot be read as an index with a column file"):
        lpbf.load("l", str(folder))


def test_mistakes(folder, monkeypatch):
    with pytest.raises(DataError, match=r"have \[2, 0, 1\] rows, the benchmark has \[1100, 0, 290"):
        lpbf.load("l", str(folder))
    with pytest.raises(DataError, match="missing: no such file .*vedantpuri/LPBF_FLARE.*MATATTN"):
        lpbf.load("l", str(folder / "missing"))
    write(folder / "test/case_2.npz", 9, elems=np.arange(2, 10)[None])
    with pytest.raises(DataError, match="case_2.npz: elems has indices of nodes that do not"):
        lpbf.load("l", str(folder), None)
    (folder / "test.parquet").touch()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match=r"test.parquet: needs pandas .*'matattn\[data\]'"):
        lpbf.load("l", str(folder), None)


def test_published_constants_are_those_of_three_random_numbers():
    import torch

    drawn = torch.rand(3, 1, generator=torch.Generator().manual_seed(0))
    assert lpbf.PUBLISHED_MEAN == pytest.approx(drawn.mean().item(), abs=5e-6)
    assert lpbf.PUBLISHED_STD == pytest.approx(drawn.std().item(), abs=5e-6)


def test_published_metric_is_the_relative_error_of_both_sides_decoded():
    random = np.random.default_rng(0)
    true, predicted = random.normal(0, 0.1, (2, 500, 1))
    mean, std = lpbf.PUBLISHED_MEAN, lpbf.PUBLISHED_STD
    decoded = std * true + mean, std * predicted + mean
    expected = np.linalg.norm(decoded[1] - decoded[0]) / np.linalg.norm(decoded[0])
    assert lpbf.published_metric(true, predicted) == pytest.approx(expected)
    relative = np.linalg.norm(predicted - true) / np.linalg.norm(true)
    assert relative > 10 * expected
    assert lpbf.published_metric(true[:, 0], true[:, 0]) == 0
