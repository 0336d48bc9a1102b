"""Neighbour lists of one atom per orbit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from matattn.structures.batch import geometry
from matattn.structures.image_rule import ImageRule
from matattn.structures.symmetry import orbits
from matattn.testing import random_crystal, rutile_supercell

CUTOFF = 7.0


def lists(crystal, tolerance=1e-6):
    arrays = geometry(crystal)
    return ImageRule(CUTOFF, symmetry=tolerance)(*arrays), ImageRule(CUTOFF)(*arrays)


def target(neighbors):
    return np.repeat(np.arange(len(neighbors.counts)), neighbors.counts)


def check_all_images_are_there(reduced, full, orbit=None):
    """Every row has the images of its atom, as (orbit of the source, distance)."""
    orbit = np.arange(len(full.counts)) if orbit is None else orbit
    row_of, atom_of = target(reduced), target(full)
    for row, atom in enumerate(reduced.atoms):
        mine = row_of == row
        size = reduced.multiplicity[mine].astype(int)
        actual = np.repeat(np.stack([reduced.source, reduced.distance], 1)[mine], size, axis=0)
        mine = atom_of == atom
        expected = np.stack([orbit[full.source[mine]], full.distance[mine]], 1)
        for pairs in (actual, expected):
            pairs[:] = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        assert np.allclose(actual, expected, rtol=0, atol=1e-6)


def test_shells_of_caesium_chloride():
    z, cell = np.array([55, 17]), np.diag([4.0, 4.0, 4.0])
    pos = np.array([[0.0, 0, 0], [2, 2, 2]])
    neighbors = ImageRule(4.5, symmetry=1e-3)(z, pos, cell)
    assert neighbors.counts.tolist() == [3, 3]
    assert neighbors.source.tolist() == [0, 0, 1, 0, 1, 1]
    shells = [0, 4, np.sqrt(12), np.sqrt(12), 0, 4]
    assert neighbors.distance == pytest.approx(shells, abs=1e-12)
    assert neighbors.multiplicity.tolist() == [1, 6, 8, 8, 1, 6]


def test_a_supercell_has_the_rows_of_its_primitive_cell():
    reduced, full = lists(rutile_supercell())
    assert reduced.orbit_size.tolist() == [4, 8]
    assert len(reduced.source) < len(full.source) / 20
    check_all_images_are_there(reduced, full, orbit=np.array([0, 0, 1, 1, 1, 1] * 2))


def test_without_symmetry_every_atom_keeps_its_row():
    crystal = random_crystal(np.random.default_rng(0), 5)
    reduced, full = lists(crystal)
    assert reduced.orbit_size.tolist() == [1] * 5
    check_all_images_are_there(reduced, full)
    # inversion brings an atom's own images in pairs
    own = reduced.source == target(reduced)
    assert (reduced.multiplicity[~own] == 1).all() and (reduced.multiplicity[own] == 2).any()


@pytest.mark.parametrize("size, rows", [(1e-8, 2), (1e-3, 12)])
def test_a_displaced_atom_counts_only_within_the_tolerance(size, rows):
    crystal = rutile_supercell()
    crystal["pos"][3] += torch.tensor([1.0, 0.7, -0.4]) * size
    reduced, full = lists(crystal, tolerance=1e-5)
    assert len(reduced.counts) == rows
    if rows == 12:
        check_all_images_are_there(reduced, full)


def test_orbits_are_numbered_by_their_first_atoms(monkeypatch):
    labels = np.array([7, 7, 0, 0, 0, 0] * 2)
    monkeypatch.setattr(
        "spglib.get_symmetry_dataset", lambda *_: SimpleNamespace(crystallographic_orbits=labels)
    )
    reduced, full = lists(rutile_supercell())
    assert reduced.atoms.tolist() == [0, 2]
    check_all_images_are_there(reduced, full, orbit=np.array([0, 0, 1, 1, 1, 1] * 2))


def test_a_proposal_that_the_distances_deny_is_refused(monkeypatch):
    """Whatever the symmetry search says: unequal surroundings never share a row."""
    crystal = random_crystal(np.random.default_rng(3), 4)
    monkeypatch.setattr(
        "matattn.structures.symmetry.orbits", lambda *arguments: np.array([0, 0, 1, 2])
    )
    reduced, full = lists(crystal)
    assert reduced.orbit_size.tolist() == [1] * 4
    check_all_images_are_there(reduced, full)


def test_a_failed_search_means_no_symmetry():
    z, pos, cell = np.array([1, 1]), np.zeros((2, 3)), np.eye(3)  # two atoms at one place
    assert orbits(z, pos, cell, 1e-3).tolist() == [0, 1]


def test_images_at_the_edge_of_the_sphere_do_not_hide_symmetry():
    """A shell that rounding puts partly inside the sphere."""
    crystal = rutile_supercell()
    z, pos, cell = geometry(crystal)
    pos = pos + 1e-9 * np.random.default_rng(0).standard_normal(pos.shape)
    for cutoff in (2.959, 2 * 2.959, 4.594):  # exactly at shells of the crystal
        assert len(ImageRule(cutoff, symmetry=1e-6)(z, pos, cell).counts) == 2
