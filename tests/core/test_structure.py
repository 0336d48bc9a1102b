"""Reading, checking and converting structures: what bad input says."""

import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from matattn.errors import StructureError
from matattn.structure import read, to_data, to_tensors, validate, validate_arrays

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


@pytest.fixture
def salt():
    return SALT.copy()


@pytest.mark.parametrize("name, fmt", [("a.cif", "cif"), ("POSCAR", "poscar"), ("a.json", "json")])
def test_read_formats(tmp_path, salt, name, fmt):
    path = tmp_path / name
    salt.to(filename=str(path), fmt=fmt)
    (structure,) = read(path)
    assert structure.composition == salt.composition
    assert structure.volume == pytest.approx(salt.volume)


def test_read_extended_xyz(tmp_path, salt):
    ase_io = pytest.importorskip("ase.io")
    path = tmp_path / "two.extxyz"
    atoms = salt.to_ase_atoms()
    ase_io.write(path, [atoms, atoms])
    first, second = read(path)
    assert first.composition == second.composition == salt.composition


def test_poscar_without_symbols_is_refused(tmp_path):
    path = tmp_path / "POSCAR"
    path.write_text("salt\n4.0\n1 0 0\n0 1 0\n0 0 1\n1 1\ndirect\n0 0 0\n.5 .5 .5\n")
    with pytest.raises(StructureError, match="no element symbols"):
        read(path)


def test_bad_entries_leave_the_others(tmp_path, salt):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([salt.as_dict(), {"lattice": 3}, salt.as_dict()]))
    first, second, third = read(path)
    assert isinstance(second, StructureError) and f"{path}, entry 2" in str(second)
    assert first == third == salt


def test_json_imports_no_module(tmp_path, salt):
    """pymatgen would import whatever a site property names."""
    content = salt.as_dict()
    trap = {"@module": "module_that_must_not_be_imported", "@class": "X", "@version": "1"}
    content["properties"] = {"x": trap}
    for site in content["sites"]:
        site["properties"] = {"x": trap}
        site["species"][0]["properties"] = {"spin": trap}
    path = tmp_path / "trap.json"
    path.write_text(json.dumps(content))
    assert read(path)[0] == salt


def test_cif_says_why(tmp_path, salt):
    path = tmp_path / "twice.cif"
    salt.to(filename=str(path))
    path.write_text(path.read_text().replace("  1\n", "  2.5\n"))
    with pytest.raises(StructureError, match="(?i)occupanc"):
        read(path)


def test_read_list_of_structures(tmp_path, salt):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([salt.as_dict(), {"structure": salt.as_dict()}]))
    assert len(read(path)) == 2


def damaged_cif(path):
    SALT.to(filename=str(path), fmt="cif")
    path.write_text(path.read_text()[:350])


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("empty.cif", lambda path: path.write_text(""), "the file is empty"),
        ("cut.cif", damaged_cif, "cannot be read as CIF"),
        ("words.json", lambda path: path.write_text("{}"), "cannot be read as pymatgen JSON"),
        ("none.json", lambda path: path.write_text("[]"), "holds no structure"),
        ("POSCAR_bad", lambda path: path.write_text("NaCl\n1.0\n1 0"), "cannot be read as POSCAR"),
        ("notes.txt", lambda path: path.write_text("x"), "unknown file type"),
        ("bytes.cif", lambda path: path.write_bytes(b"\xff\xfe\x00data"), "cannot be read as CIF"),
        ("missing.cif", lambda path: None, "no such file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(StructureError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_partial_occupancy_is_named(tmp_path):
    path = tmp_path / "alloy.cif"
    Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0] * 3]).to(filename=str(path))
    (structure,) = read(path)
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
        ([0], [[0, 0, 0]], CUBE, "atomic number 0"),
        ([11, 17], [[0, 0, 0], [0, 0, 0]], CUBE, "sites 1 and 2 overlap"),
        ([11, 17], [[0, 0, 0], [0, 0, 0.9999]], CUBE, "sites 1 and 2 overlap"),
        ([11], [[0, 0]], CUBE, "expected 1 x 3 coordinates"),
        ([11], [["a", 0, 0]], CUBE, "not numbers"),
    ],
)
def test_bad_arrays_are_refused(z, frac, cell, message):
    with pytest.raises(StructureError) as error:
        validate_arrays(z, frac, cell, "row 7")
    assert str(error.value).startswith("row 7: ") and message in str(error.value)


def test_close_atoms_are_a_remark():
    (remark,) = validate_arrays([1, 1], [[0, 0, 0], [0, 0, 0.1]], CUBE, "h2")
    assert remark == "sites 1 and 2 are only 0.40 Å apart"
    (remark,) = validate_arrays([1], [[0, 0, 0]], np.diag([0.4, 9, 9]), "chain")
    assert "site 1 and its periodic image" in remark
    assert validate(SALT) == []


@settings(deadline=None, max_examples=50)
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


@pytest.mark.parametrize("compress", [True, False])
def test_gzipped_cif_is_not_mistaken(tmp_path, compress):
    path = tmp_path / ("salt.cif.gz" if compress else "salt.cif")
    if compress:
        path.write_bytes(gzip.compress(SALT.to(fmt="cif").encode()))
        with pytest.raises(StructureError, match="unknown file type"):
            read(path)
    else:
        SALT.to(filename=str(path))
        assert len(read(path)) == 1
