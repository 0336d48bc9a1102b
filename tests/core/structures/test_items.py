"""Structures in arrays are those of a list, bit for bit."""

import numpy as np
import pytest
import torch

from matattn.structures.dataset import PropertyDataset
from matattn.structures.items import Geometries, PackedItems
from matattn.structures.metrics import composition
from matattn.structures.structure import tensors_from_arrays, to_data
from matattn.units import find_property

GENERATOR = np.random.default_rng(0)
SITES = np.array([3, 1, 5, 2])
ENDS = np.cumsum(SITES)
Z = GENERATOR.integers(1, 60, 11)
FRAC = GENERATOR.uniform(-1, 2, (11, 3))
CELL = np.stack([4 * np.eye(3) + GENERATOR.normal(0, 0.3, (3, 3)) for _ in SITES])
LABELS = GENERATOR.normal(size=(4, 2))
LABELS[1, 0] = np.nan
ROWS = np.array([3, 0, 2])
IDS = ["a", "b", "c", "d"]


def one_by_one():
    items = []
    for row in ROWS:
        atoms = slice(ENDS[row] - SITES[row], ENDS[row])
        tensors = tensors_from_arrays(Z[atoms], FRAC[atoms], CELL[row] if CELL[row].any() else None)
        items.append(to_data(tensors, LABELS[row], IDS[row]))
    return items


def packed():
    return PackedItems.of(IDS, Geometries(SITES, Z, FRAC, CELL), ROWS, LABELS[ROWS])


def dataset(items):
    targets = find_property("e_form"), find_property("band_gap")
    return PropertyDataset("toy", targets, items, np.array(["train", "val", "train"]), "")


def test_elements_have_the_bits_of_single_ones():
    items = packed()
    for one, other in zip(items, one_by_one(), strict=True):
        assert one.id == other.id
        for key in ("z", "pos", "cell", "y"):
            assert one[key].dtype == other[key].dtype
            assert one[key].numpy().tobytes() == other[key].numpy().tobytes(), key
    assert items[-1].id == "c" and [item.id for item in items[1:]] == ["a", "c"]
    with pytest.raises(IndexError):
        items[3]


def test_a_data_set_of_them_says_the_same():
    one, other = dataset(packed()), dataset(one_by_one())
    assert one.fingerprint() == other.fingerprint()
    assert list(one.ids()) == list(other.ids()) == ["d", "a", "c"]
    assert one.formulas() == other.formulas() and one.elements() == other.elements()
    assert one.elements(None) == other.elements(None)
    assert one.labels().tobytes() == other.labels().tobytes()
    assert one.sites().tolist() == other.sites().tolist() == [2, 3, 5]
    assert one.owners().tolist() == other.owners().tolist()
    assert not one.has_molecules and not other.has_molecules
    assert composition(one).tobytes() == composition(other).tobytes()


def test_a_molecule_keeps_its_positions(monkeypatch):
    cells = CELL * (np.arange(len(CELL)) != 2)[:, None, None]
    monkeypatch.setitem(globals(), "CELL", cells)
    items = packed()
    assert torch.equal(items[2].pos, torch.tensor(FRAC[4:9], dtype=torch.float32))
    assert dataset(items).has_molecules


def test_geometries_of_a_list_and_of_arrays():
    one, other = Geometries.of(packed()), Geometries.of(one_by_one())
    assert one.fingerprint() == other.fingerprint()
    for array, expected in zip(one.part(1, 3)[0], one[1], strict=True):
        assert array.tobytes() == expected.tobytes()
    prints = {one.fingerprint(), one.part(1, 3).fingerprint()}
    for name in ("z", "pos", "cell", "sites"):
        changed = {key: getattr(one, key) for key in ("sites", "z", "pos", "cell")}
        changed[name] = changed[name] + 1
        prints.add(Geometries(**changed).fingerprint())
    assert len(prints) == 6
