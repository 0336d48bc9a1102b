"""Batches of meshes, and the scaling of their inputs."""

import numpy as np
import pytest
import torch

from matattn.meshes.batch import InputScaling, TrainingRange, collate_meshes
from matattn.meshes.fields import Field, FieldDataset, MeshSample

X, Y = Field("x", "m", "range"), Field("y", "m", "standard")
LOAD = Field("load", "N", 10.0)
STRESS = Field("stress", "Pa")


def sample(number, nodes=6):
    pos = np.random.default_rng(int(number)).random((nodes, 2)).astype(np.float32)
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


@pytest.mark.parametrize("kind", ["range", "standard"])
@pytest.mark.parametrize("constant", [0.0, 5.0, 1e6])
def test_noise_of_rounding_is_not_scaled_up(kind, constant):
    """In a coordinate and in an input field, beside a coordinate of another size."""
    noise = np.float32([0, 1e-17]) if not constant else np.float32([0, 1.2e-7 * constant])
    items = [sample(n) for n in range(4)]
    for number, item in enumerate(items):
        item.pos[:, 1] = constant + noise[number % 2]
        item.x[:, 0] = (constant or 1) * (1 + 1.2e-7 * (number % 2))
    y = Field("y", "m", kind)
    items[3].pos[:, 0] += 1
    data = FieldDataset(
        "test", (X, y), (Field("load", "N", kind),), (STRESS,), items, np.array(["train"] * 4), ""
    )
    scaled = InputScaling.fit(data)(np.concatenate([item.inputs for item in items]))
    assert np.ptp(scaled[:, 1:], axis=0).max() < 1e-6
    assert np.ptp(scaled[:, 0]) == pytest.approx(2)


def test_small_numbers_are_no_noise():
    items = [sample(1), sample(2)]
    for item in items:
        item.pos[:] *= 1e-9
        item.x[:] *= 1e-15
    data = dataset(items, ["train"] * 2, Field("load", "N"))
    scaled = InputScaling.fit(data)(np.concatenate([item.inputs for item in items]))
    assert np.ptp(scaled[:, 0]) == pytest.approx(2) and np.ptp(scaled[:, 2]) == pytest.approx(2)


def test_meshes_unlike_the_training_are_told():
    data = dataset([sample(n) for n in (1, 2, 3)], ["train", "train", "test"])
    known = TrainingRange.of(data)
    names = ["x", "y", "load"]
    assert known.strange(sample(1), names) == known.strange(sample(2.4), names) == []
    (load,) = known.strange(sample(3), names)
    assert load == "load is 3, in the training 1 to 2"
    far, small = sample(1), sample(1)
    far.pos[:] *= 1e3
    small.pos[:] *= 1e-3
    assert [text.split(" is ")[0] for text in known.strange(far, names)] == ["x", "y"]
    (size,) = known.strange(small, names)
    assert size.startswith("the mesh is 0.000") and size.endswith(": other units?")
    again = TrainingRange(known.low, known.high, known.sizes)
    assert again.strange(far, names) == known.strange(far, names)


def test_another_value_of_a_constant_input_is_told():
    known = TrainingRange.of(dataset([sample(1), sample(1)], ["train"] * 2))
    assert known.strange(sample(1), "xyl") == []
    assert known.strange(sample(1.01), "xyl") == ["l is 1.01, in the training 1"]
