"""Baselines and errors of properties."""

import numpy as np
import pytest
import torch

from matattn.structures.dataset import PropertyDataset
from matattn.structures.metrics import baselines, evaluate
from matattn.structures.structure import tensors_from_arrays, to_data
from matattn.units import find_property


def linear_data(count=60):
    """Labels that are linear in composition; the second one is missing in every other row."""
    generator = np.random.default_rng(0)
    formulas = [generator.integers(1, 6, 4).tolist() for _ in range(count)]
    energy = [np.mean(z) - 2 for z in formulas]
    labels = [[e, 2 * e if n % 2 else float("nan")] for n, e in enumerate(energy)]
    split = ["train"] * (count - 20) + ["val"] * 10 + ["test"] * 10
    items = []
    for number, (z, label) in enumerate(zip(formulas, labels, strict=True)):
        frac = np.arange(3 * len(z)).reshape(-1, 3) / (3 * len(z))
        items.append(to_data(tensors_from_arrays(z, frac, 5 * np.eye(3)), label, str(number)))
    targets = find_property("e_form"), find_property("band_gap")
    return PropertyDataset("toy", targets, items, np.array(split), "note")


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
