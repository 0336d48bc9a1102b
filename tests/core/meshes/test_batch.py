"""Batches of meshes, and the scaling of their inputs."""

import numpy as np
import pytest
import torch

from matattn.meshes.batch import InputScaling, collate_meshes
from matattn.meshes.fields import Field, FieldDataset, MeshSample

X, Y = Field("x", "m", "range"), Field("y", "m", "standard")
LOAD = Field("load", "N", 10.0)
STRESS = Field("stress", "Pa")


def sample(number, nodes=6):
    pos = np.random.default_rng(number).random((nodes, 2)).astype(np.float32)
    x = np.full((nodes, 1), number, dtype=np.float32)
    return MeshSample(f"s{number}", pos, x, pos[:, :1])


def dataset(items, split, load=LOAD):
    return FieldDataset("test", (X, Y), (load,), (STRESS,), items, np.array(split), "")


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
    constant = dataset(items, ["train"] * 2, Field("load", "N"))
    assert np.isfinite(InputScaling.fit(constant)(items[0].inputs)).all()


def test_batches_are_packed():
    items = [sample(1, 4), sample(2, 1), sample(3, 6)]
    scaling = InputScaling([0.0] * 3, [1.0] * 3)
    batch = collate_meshes(items, scaling, [7, 8, 9])
    assert batch.ptr.tolist() == [0, 4, 5, 11] and len(batch) == 3 and batch.row == [7, 8, 9]
    assert torch.equal(batch.inputs[4:5], torch.from_numpy(items[1].inputs))
    assert batch.inputs.dtype == batch.y.dtype == torch.float32
    assert batch.to("cpu").row == batch.row
