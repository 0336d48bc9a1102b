"""Fields on meshes, and their checks."""

import numpy as np
import pytest

from matattn.errors import DataError
from matattn.meshes.fields import Field, FieldDataset, MeshSample

X, Y = Field("x", "m", "range"), Field("y", "m", "standard")
LOAD = Field("load", "N", 10.0)
STRESS = Field("stress", "Pa")


def sample(number):
    pos = np.random.default_rng(number).random((6, 2)).astype(np.float32)
    x = np.full((6, 1), number, dtype=np.float32)
    return MeshSample(f"s{number}", pos, x, pos[:, :1] * (1 + number))


def dataset(items, split=None, **keys):
    split = np.array(split or ["train"] * len(items))
    return FieldDataset("test", (X, Y), (LOAD,), (STRESS,), items, split, "", **keys)


def test_rows_and_samples():
    data = dataset([sample(n) for n in range(3)], ["train", "test", "train"])
    assert data.rows("train").tolist() == [0, 2]
    assert [s.id for s in data.samples("test")] == ["s1"]


def test_fingerprint_sees_every_part():
    prints = {dataset([sample(1)]).fingerprint()}
    for key in ("pos", "x", "y"):
        changed = sample(1)
        getattr(changed, key)[0, 0] += 1
        prints.add(dataset([changed]).fingerprint())
    changed = sample(1)
    changed.cells["triangle"] = np.array([[0, 1, 2]])
    prints.add(dataset([changed]).fingerprint())
    assert len(prints) == 5


def broken(**parts):
    changed = sample(1)
    for key, value in parts.items():
        setattr(changed, key, value)
    return changed


NAN = np.array([[0.0], [np.nan]], dtype=np.float32).repeat(3, 0)


@pytest.mark.parametrize(
    "bad, message",
    [
        (broken(pos=np.empty((0, 2))), "s1: the mesh has no nodes"),
        (broken(pos=np.zeros((6, 3))), r"s1: pos has shape \(6, 3\), expected \(6, 2\) \(x, y at"),
        (broken(x=np.zeros((5, 1))), r"s1: x has shape \(5, 1\), expected \(6, 1\) \(load at"),
        (broken(y=NAN), "s1: stress is nan at node 3 .3 values are not finite"),
    ],
)
def test_bad_samples_are_named(bad, message):
    with pytest.raises(DataError, match=message):
        dataset([bad])


def test_empty_sets_are_refused():
    with pytest.raises(DataError, match="test: no usable mesh; first problem: a.vtu: broken"):
        dataset([], skipped=["a.vtu: broken"])
    with pytest.raises(DataError, match="test: no training sample"):
        dataset([sample(1)], ["test"])
