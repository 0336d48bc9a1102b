"""Fields on meshes: checks, scaling, batches, and the baselines of a network."""

import numpy as np
import pytest
import torch

from matattn.errors import DataError
from matattn.meshes.baselines import baselines, relative_l2
from matattn.meshes.batch import InputScaling, collate_meshes
from matattn.meshes.fields import Field, FieldDataset, MeshSample

X, Y = Field("x", "m", "range"), Field("y", "m", "standard")
LOAD = Field("load", "N", 10.0)
STRESS = Field("stress", "Pa")


def sample(number, nodes=6, seed=None):
    generator = np.random.default_rng(number if seed is None else seed)
    pos = generator.random((nodes, 2)).astype(np.float32)
    x = np.full((nodes, 1), number, dtype=np.float32)
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


def test_scaling_is_that_of_the_training_samples():
    data = dataset([sample(1), sample(2), sample(50)], ["train", "train", "test"])
    scaling = InputScaling.fit(data)
    scaled = np.concatenate([scaling(s.inputs) for s in data.samples("train")])
    assert scaled[:, 0].min() == pytest.approx(-1) and scaled[:, 0].max() == pytest.approx(1)
    assert scaled[:, 1].mean() == pytest.approx(0, abs=1e-6)
    assert scaled[:, 1].std() == pytest.approx(1, rel=1e-5)
    assert set(scaled[:, 2].tolist()) == {np.float32(0.1), np.float32(0.2)}
    assert scaling(sample(50).inputs)[:, 2] == pytest.approx(5.0)


def test_a_constant_input_stays_finite():
    items = [sample(1), sample(1)]
    constant = FieldDataset(
        "test", (X, Y), (Field("load", "N"),), (STRESS,), items, np.array(["train"] * 2), ""
    )
    assert np.isfinite(InputScaling.fit(constant)(items[0].inputs)).all()


def test_batches_are_packed():
    items = [sample(1, 4), sample(2, 1), sample(3, 6)]
    scaling = InputScaling([0.0] * 3, [1.0] * 3)
    batch = collate_meshes(items, scaling, [7, 8, 9])
    assert batch.ptr.tolist() == [0, 4, 5, 11] and len(batch) == 3 and batch.row == [7, 8, 9]
    assert torch.equal(batch.inputs[4:5], torch.from_numpy(items[1].inputs))
    assert batch.inputs.dtype == batch.y.dtype == torch.float32
    assert batch.to("cpu").row == batch.row


def test_relative_l2():
    true = np.array([[3.0, 1.0], [4.0, 0.0]])
    made = np.array([[3.0, 0.0], [4.5, 0.0]])
    assert relative_l2(true, made) == pytest.approx([0.1, 1.0])


def aligned_samples(count, seed=0):
    """Return a field that depends on one number per sample, which kernel ridge can learn."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(0, 1, 20)
    items = []
    for number, t in enumerate(generator.random(count)):
        pos = np.stack([grid, t * np.sin(3 * grid)], 1).astype(np.float32)
        y = (np.cos(2 * np.pi * grid * t) + t)[:, None].astype(np.float32)
        items.append(MeshSample(f"s{number}", pos, pos[:, :0], y))
    return items


def errors_of(data):
    test = data.samples("test")
    return {
        name: float(np.mean([relative_l2(s.y, predict(s)) for s in test]))
        for name, predict in baselines(data).items()
    }


@pytest.mark.parametrize("val", [0, 10])
def test_baselines_where_nodes_correspond(val):
    items = aligned_samples(60 + val)
    split = ["train"] * 50 + ["val"] * val + ["test"] * 10
    data = FieldDataset("test", (X, Y), (), (STRESS,), items, np.array(split), "", aligned=True)
    errors = errors_of(data)
    assert list(errors) == ["constant", "mean_field", "nearest_sample", "kernel_ridge"]
    assert errors["kernel_ridge"] < errors["nearest_sample"] < errors["mean_field"] < 1
    assert errors["kernel_ridge"] < 0.02


def test_baselines_where_nodes_do_not_correspond():
    items = aligned_samples(60)
    data = FieldDataset(
        "test", (X, Y), (), (STRESS,), items, np.array(["train"] * 50 + ["test"] * 10), "",
        aligned=True,
    )  # fmt: skip
    expected = errors_of(data)["nearest_sample"]
    generator = np.random.default_rng(1)
    shuffled = []
    for item in items:
        order = generator.permutation(20)
        shuffled.append(MeshSample(item.id, item.pos[order], item.x[order], item.y[order]))
    ragged = FieldDataset("test", (X, Y), (), (STRESS,), shuffled, data.split, "")
    errors = errors_of(ragged)
    assert list(errors) == ["constant", "nearest_sample"]
    assert errors["nearest_sample"] <= 3 * expected < errors["constant"]


def test_the_nearest_training_sample_is_itself():
    data = dataset([sample(n) for n in range(4)], ["train"] * 4)
    nearest = baselines(data)["nearest_sample"]
    for item in data.items:
        assert np.array_equal(nearest(item), item.y)
