"""Batches of crystals: one list of all atoms."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from matattn.structures.batch import by_atom_budget, collate
from matattn.structures.image_rule import ImageRule
from matattn.testing import random_crystal, rutile_supercell


def test_batch_offsets_and_pointers():
    generator = np.random.default_rng(2)
    crystals = [random_crystal(generator, n) | {"row": n} for n in (2, 1, 3)]
    batch = collate(crystals, ImageRule(5.0))
    assert batch.batch.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.row.tolist() == [2, 1, 3]
    assert batch.num_graphs == 3 and batch.y.shape == (3, 0)
    assert torch.equal(batch.batch[batch.edge_index[0]], batch.batch[batch.edge_index[1]])
    shift = torch.einsum(
        "et,etx->ex", batch.image.double(), batch.cell[batch.batch[batch.edge_index[1]]]
    )
    vectors = batch.pos[batch.edge_index[0]] + shift - batch.pos[batch.edge_index[1]]
    assert vectors.norm(dim=1).max() <= 5
    half = batch.to(dtype=torch.float32)
    assert half.pos.dtype == torch.float32 and half.z.dtype == torch.int64


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_atom_budget_keeps_everything_in_order(sizes, budget):
    parts = list(by_atom_budget(sizes, budget))
    assert [index for part in parts for index in part] == list(range(len(sizes)))
    for part in parts:
        assert len(part) == 1 or sum(sizes[index] for index in part) <= budget


def test_batch_of_reduced_crystals():
    crystals = [rutile_supercell(), random_crystal(np.random.default_rng(1), 3)]
    batch = collate(crystals, ImageRule(7.0, symmetry=1e-6))
    assert batch.orbit_size.tolist() == [4, 8, 1, 1, 1]
    assert batch.batch.tolist() == [0, 0, 1, 1, 1]
    assert batch.image is None and batch.distance.shape == batch.multiplicity.shape
    images = collate(crystals, ImageRule(7.0)).edge_index.shape[1]
    assert (batch.multiplicity * batch.orbit_size[batch.edge_index[1]]).sum() == images
