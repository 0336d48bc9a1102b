"""Simple predictions of fields, and their errors."""

import numpy as np
import pytest

from matattn.meshes.baselines import baselines, relative_l2
from matattn.meshes.fields import Field, FieldDataset, MeshSample

X, Y = Field("x", "m", "range"), Field("y", "m", "standard")
STRESS = Field("stress", "Pa")


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
    items, split = aligned_samples(4), np.array(["train"] * 4)
    data = FieldDataset("test", (X, Y), (), (STRESS,), items, split, "")
    nearest = baselines(data)["nearest_sample"]
    for item in data.items:
        assert np.array_equal(nearest(item), item.y)
