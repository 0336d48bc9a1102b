"""Checking and converting structures: what bad input says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from matattn.errors import StructureError
from matattn.structures.remarks import add_doubt, add_remark, remarks_of
from matattn.structures.structure import to_data, to_tensors, validate, validate_arrays

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


@pytest.fixture
def salt():
    return SALT.copy()


def test_partial_occupancy_is_named():
    structure = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0] * 3])
    with pytest.raises(StructureError, match=r"alloy: site 1 \(Cu:0.5.*partial occupancy"):
        validate(structure, "alloy")


def test_dummy_species_are_refused():
    structure = Structure(Lattice.cubic(4), ["X"], [[0] * 3])
    with pytest.raises(StructureError, match=r"here: site 1 \(X.*not a chemical element"):
        validate(structure, "here")


CUBE = (4 * np.eye(3)).tolist()


@pytest.mark.parametrize(
    "z, frac, cell, message",
    [
        ([], np.zeros((0, 3)), CUBE, "no atoms"),
        ([11], [[0, 0, float("nan")]], CUBE, "site 1 has a NaN"),
        ([11, 17], [[0, 0, 0], [0.5, float("inf"), 0]], CUBE, "site 2 has a NaN or infinite"),
        ([11], [[0, 0, 0]], np.zeros((3, 3)), "volume of 0 Å^3"),
        ([11, 17], [[0] * 3, [0.5] * 3], 0.4 * np.eye(3), "lattice not in Å?"),
        (["11"], [[0, 0, 0]], CUBE, "whole numbers"),
        ([11.7], [[0, 0, 0]], CUBE, "whole numbers"),
        ([11], [[0, 0, 0]], [[1, 0, 0], [2, 0, 0], [0, 0, 5]], "volume of 0 Å^3"),
        ([11], [[0, 0, 0]], [[4, 0, 0], [0, 4, 0], [0, 0, float("nan")]], "lattice vector is NaN"),
        ([99], [[0, 0, 0]], CUBE, "atomic number 99"),
        ([True, 17], [[0, 0, 0], [0.5] * 3], CUBE, "atomic numbers must be whole numbers"),
        ([0], [[0, 0, 0]], CUBE, "atomic number 0"),
        ([11, 17], [[0, 0, 0], [0, 0, 0]], CUBE, "sites 1 and 2 overlap"),
        ([11, 17], [[0, 0, 0], [0, 0, 0.9999]], CUBE, "sites 1 and 2 overlap"),
        ([1, 1], [[0, 0, 0], [0, 0, 0.12]], CUBE, "sites 1 and 2 overlap (0.48 Å apart)"),
        ([1], [[0, 0, 0]], [[0.4, 0, 0], [0, 9, 0], [0, 0, 9]], "site 1 and its periodic image"),
        ([11], [[0, 0]], CUBE, "expected 1 x 3 coordinates"),
        ([11], [["a", 0, 0]], CUBE, "not numbers"),
    ],
)
def test_bad_arrays_are_refused(z, frac, cell, message):
    with pytest.raises(StructureError) as error:
        validate_arrays(z, frac, cell, "row 7")
    assert str(error.value).startswith("row 7: ") and message in str(error.value)


def test_close_atoms_are_a_doubt():
    (doubt,) = validate_arrays([22, 8], [[0, 0, 0], [0, 0, 0.25]], CUBE, "oxide")
    assert doubt == "sites 1 and 2 are only 1.00 Å apart"
    (doubt,) = validate_arrays([26], [[0, 0, 0]], np.diag([1.4, 9, 9]), "chain")
    assert "site 1 and its periodic image" in doubt
    assert validate(SALT) == []
    assert validate_arrays([1, 1], [[0, 0, 0], [0, 0, 0.185]], CUBE, "H2") == []


def test_doubts_of_reading_are_doubts():
    add_remark(structure := SALT.copy(), "rounded")
    add_doubt(structure, "another origin?")
    assert validate(structure) == ["another origin?"]
    assert (remarks_of(structure), remarks_of(SALT)) == (["rounded"], [])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-5, 5, allow_nan=False), min_size=3, max_size=3))
def test_positions_are_wrapped_into_the_cell(frac):
    structure = Structure(Lattice.from_parameters(3, 4, 5, 80, 95, 110), ["Si"], [frac])
    tensors = to_tensors(structure, torch.float64)
    wrapped = tensors["pos"].numpy() @ np.linalg.inv(tensors["cell"][0].numpy())
    assert (wrapped > -1e-9).all() and (wrapped < 1 + 1e-9).all()
    difference = wrapped[0] - np.array(frac)
    assert np.allclose(difference, np.round(difference), atol=1e-9)


def test_data_has_the_documented_keys(salt):
    data = to_data(to_tensors(salt), [-2.1, float("nan")], "salt")
    assert data.z.tolist() == [11] * 4 + [17] * 4
    assert data.pos.shape == (8, 3) and data.cell.shape == (1, 3, 3)
    assert data.y.shape == (1, 2) and data.y[0, 1].isnan()
    assert data.id == "salt"
