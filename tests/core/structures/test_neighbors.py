"""Neighbour lists against brute force."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from matattn.structures.image_rule import ImageRule
from matattn.structures.neighbors import periodic_neighbors
from matattn.testing import random_crystal


def brute_force(pos, cell, cutoff):
    """Sorted (target, source, image) of all images within the cutoff, for atoms in the cell."""
    planes = np.linalg.norm(np.linalg.inv(cell), axis=0)  # one over the distance of lattice planes
    reach = np.ceil(cutoff * planes).astype(int) + 1
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1)
    images = grid.reshape(-1, 3)
    vectors = pos[None, :, None] + images @ cell - pos[:, None, None]
    target, source, n = np.nonzero(np.linalg.norm(vectors, axis=-1) <= cutoff)
    return sorted(zip(target, source, map(tuple, images[n]), strict=True))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(2.0, 6.0))
@example(177, 4, 6.0)  # a flat cell: images up to 10 cells away
def test_sphere_equals_brute_force(seed, atoms, cutoff):
    crystal = random_crystal(np.random.default_rng(seed), atoms)
    pos, cell = crystal["pos"].numpy(), crystal["cell"][0].numpy()
    neighbors = ImageRule(cutoff)(crystal["z"].numpy(), pos, cell)
    target = np.repeat(np.arange(atoms), neighbors.counts)
    rows = zip(target, neighbors.source, map(tuple, neighbors.image), strict=True)
    assert sorted(rows) == brute_force(pos, cell, cutoff)


@pytest.mark.parametrize("shift", [0, 3])
def test_distances_belong_to_their_images(shift):
    crystal = random_crystal(np.random.default_rng(1), 3)
    pos, cell = crystal["pos"].numpy(), crystal["cell"][0].numpy()
    pos = pos + shift * cell[0]  # also for atoms outside the cell
    target, source, image, distance = periodic_neighbors(pos, cell, 5.0)
    vectors = pos[source] + image @ cell - pos[target]
    assert np.allclose(np.linalg.norm(vectors, axis=1), distance)
    assert (distance < 1e-8).sum() == 3  # every atom itself


@pytest.mark.parametrize("side", [30.0, 400.0, 9000.0])
def test_large_empty_cells_take_little_memory(side):
    """The same neighbours as in a cell of any size; bins of 0.5 Å in all of it would take 47 TB."""
    pos = np.array([[1.0, 1, 1], [1.3, 1, 1], [side / 2, 5, 5], [side / 2, 5, 5.6]])
    target, source, image, distance = periodic_neighbors(pos, side * np.eye(3), 0.5)
    pairs = {(int(t), int(s)): float(d) for t, s, d in zip(target, source, distance, strict=True)}
    assert pairs == pytest.approx({**{(i, i): 0.0 for i in range(4)}, (0, 1): 0.3, (1, 0): 0.3})
    assert not image.any()


@pytest.mark.parametrize("cell", [
    np.zeros((3, 3)),
    np.diag([300.0, 250, 400]),
    np.array([[300, 0, 0], [-140.0, 260, 0], [60, 80, 240]]),
])  # fmt: skip
def test_a_crowd_in_a_large_empty_cell(cell):
    """The same neighbours as by all distances; bins as wide as the crowd took 7 GB."""
    generator = np.random.default_rng(1)
    crowd = generator.uniform(-3, 3, (150, 3)) + cell.sum(axis=0) * [1, 0, 1]  # about a corner
    pos = np.concatenate([crowd, [[1e5 * (not cell.any()), 20, 20]]])  # a far atom of a molecule
    target, source, image, distance = periodic_neighbors(pos, cell, 0.9)
    offsets = pos[:, None] - pos[None]
    if cell.any():
        offsets -= np.rint(offsets @ np.linalg.inv(cell)) @ cell
    all_distances = np.linalg.norm(offsets, axis=2)
    expected = np.argwhere(all_distances <= 0.9)
    assert sorted(np.stack([target, source], axis=1).tolist()) == expected.tolist()
    assert distance == pytest.approx(all_distances[target, source], abs=1e-9)
    assert np.allclose(np.linalg.norm(pos[source] + image @ cell - pos[target], axis=1), distance)


COMPACT = np.array([[2.4, 0, 0], [-0.6, 2.4, 0], [-0.4, -0.4, 190]])


@pytest.mark.parametrize("cell", [
    COMPACT,
    np.array([[0.7, 0, 0], [0, 90, 0], [0, 0, 95]]),
    np.array([[2.9, 0, 0], [0, 2.9, 0], [450, 450, 600]]),
])  # fmt: skip
@pytest.mark.parametrize("basis", [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0], [-1, 1, 0], [334, 142, 1]],
    [[1, 0, 0], [12000, 1, 0], [12000, 50, 1]],  # images of the first vector beyond 16 bits
])  # fmt: skip
def test_sheared_cells_have_the_neighbours_of_compact_ones(cell, basis):
    """Atoms far from the cell count as those in it; pymatgen took 26 GB for the images between."""
    generator = np.random.default_rng(0)
    sheared, images = np.array(basis) @ cell, generator.integers(-5, 6, (9, 3))
    pos = generator.random((9, 3))
    pos, z = (pos + images) @ sheared, np.arange(9)
    expected = ImageRule(4.0)(z, pos @ np.linalg.inv(cell) % 1 @ cell, cell)
    neighbors = ImageRule(4.0)(z, pos, sheared)
    assert neighbors.counts.tolist() == expected.counts.tolist()
    target = np.repeat(z, neighbors.counts)
    pair = (neighbors.source, target)
    order = np.lexsort((expected.distance, expected.source, target))
    assert np.allclose(neighbors.distance[np.lexsort((neighbors.distance, *pair))],
                       expected.distance[order], atol=1e-6)  # fmt: skip
    vectors = pos[neighbors.source] + neighbors.image @ sheared - pos[target]
    assert np.allclose(np.linalg.norm(vectors, axis=1), neighbors.distance, atol=1e-6)


def test_flat_and_empty_structures():
    flat = np.array([[0.0, 0, 0], [9999, 0, 0], [0, 9999, 0], [0, 9999.2, 0]])
    target, source, _, distance = periodic_neighbors(flat, np.zeros((3, 3)), 0.5)
    assert sorted(zip(target.tolist(), source.tolist(), strict=True)) == [
        (0, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3),
    ]  # fmt: skip
    assert distance.max() == pytest.approx(0.2)
