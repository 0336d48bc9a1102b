"""Splits, baselines and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset, group_split, random_split
from matattn.structures.metrics import baselines, evaluate
from matattn.structures.structure import tensors_from_arrays, to_data
from matattn.units import find_property

ENERGY, GAP = find_property("e_form"), find_property("band_gap")


def dataset(formulas, labels, split):
    items = []
    for number, (z, label) in enumerate(zip(formulas, labels, strict=True)):
        frac = np.arange(3 * len(z)).reshape(-1, 3) / (3 * len(z))
        items.append(to_data(tensors_from_arrays(z, frac, 5 * np.eye(3)), label, str(number)))
    return PropertyDataset("toy", (ENERGY, GAP), items, np.array(split), "note")


def linear_data(count=60):
    """Labels that are linear in composition; the second one is missing in every other row."""
    generator = np.random.default_rng(0)
    formulas = [generator.integers(1, 6, 4).tolist() for _ in range(count)]
    energy = [np.mean(z) - 2 for z in formulas]
    labels = [[e, 2 * e if n % 2 else float("nan")] for n, e in enumerate(energy)]
    split = ["train"] * (count - 20) + ["val"] * 10 + ["test"] * 10
    return dataset(formulas, labels, split)


def test_linear_baseline_finds_a_linear_law():
    data = linear_data()
    floor = baselines(data, ridge=1e-6)
    labels, test = data.labels(), data.rows("test")
    assert np.abs(floor["linear_composition"][test, 0] - labels[test, 0]).max() < 1e-3
    assert floor["mean"][0, 0] == pytest.approx(labels[data.rows("train"), 0].mean(), abs=1e-6)


def test_baselines_see_training_rows_only():
    data = linear_data()
    before = baselines(data)
    data.items[-1].y = torch.tensor([[1e6, 1e6]])
    after = baselines(data)
    for name in before:
        assert np.array_equal(before[name], after[name])


def test_missing_labels_do_not_count():
    data = linear_data()
    predicted = np.nan_to_num(data.labels()) + np.array([0.25, -0.5])
    result = evaluate(data, predicted)
    energy, gap = (result["test"][name] for name in ("formation_energy_per_atom", "band_gap"))
    assert energy["mae"] == pytest.approx(0.25) and energy["rmse"] == pytest.approx(0.25)
    assert gap["mae"] == pytest.approx(0.5)
    assert (energy["n"], gap["n"]) == (10, 5)
    assert energy["unit"] == "eV/atom"


@pytest.mark.parametrize(
    "labels, split, message",
    [
        ([[1.0, float("nan")]] * 2, ["train", "val"], "every label of band_gap is missing"),
        ([[1.0, float("nan")], [1.0, 2.0]], ["train", "val"], "no training row has a label of"),
    ],
)
def test_targets_without_labels_are_refused(labels, split, message):
    with pytest.raises(DataError, match=message):
        dataset([[1], [2]], labels, split)


def test_fingerprint_sees_every_part():
    prints = {linear_data().fingerprint()}
    for change in (
        lambda data: data.items[0].pos.add_(0.1),
        lambda data: data.items[0].y.add_(0.1),
        lambda data: data.items[0].z.fill_(3),
        lambda data: data.split.__setitem__(0, "val"),
    ):
        data = linear_data()
        change(data)
        prints.add(data.fingerprint())
    assert len(prints) == 5
    assert linear_data().fingerprint() in prints


@given(st.integers(1, 300), st.integers(0, 5))
def test_random_split_is_exact_and_seeded(count, seed):
    split = random_split(count, seed)
    assert abs((split == "train").sum() - 0.8 * count) <= 1
    assert np.array_equal(split, random_split(count, seed))


def test_group_split_keeps_groups_together_and_rows_in_place():
    groups = [f"g{number // 3}" for number in range(3000)]
    split = group_split(groups, seed=1)
    for first in range(0, 3000, 3):
        assert len(set(split[first : first + 3])) == 1
    assert np.mean(split == "train") == pytest.approx(0.8, abs=0.04)
    assert np.array_equal(group_split(["new", *groups], seed=1)[1:], split)
    assert not np.array_equal(group_split(groups, seed=2), split)


def test_unknown_property_needs_a_unit():
    with pytest.raises(DataError, match="'data.units={tc: UNIT}'"):
        find_property("tc")
    assert find_property("tc", {"tc": "K"}).unit == "K"
    assert find_property("k_vrh") is find_property("log10_bulk_modulus")
