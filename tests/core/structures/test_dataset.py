"""Rows of properties, their fingerprint and their splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset, group_split, random_split
from matattn.structures.structure import tensors_from_arrays, to_data
from matattn.units import find_property

ENERGY, GAP = find_property("e_form"), find_property("band_gap")


def dataset(formulas, labels, split):
    items = []
    for number, (z, label) in enumerate(zip(formulas, labels, strict=True)):
        frac = np.arange(3 * len(z)).reshape(-1, 3) / (3 * len(z))
        items.append(to_data(tensors_from_arrays(z, frac, 5 * np.eye(3)), label, str(number)))
    return PropertyDataset("toy", (ENERGY, GAP), items, np.array(split), "note")


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
    def rows():
        return dataset([[1, 2], [3]], [[1.0, 2.0], [3.0, 4.0]], ["train", "test"])

    prints = {rows().fingerprint()}
    for change in (
        lambda data: data.items[0].pos.add_(0.1),
        lambda data: data.items[0].y.add_(0.1),
        lambda data: data.items[0].z.fill_(4),
        lambda data: data.split.__setitem__(0, "val"),
    ):
        data = rows()
        change(data)
        prints.add(data.fingerprint())
    assert len(prints) == 5
    assert rows().fingerprint() in prints


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
