"""Energies, forces and stresses of files as others write them."""

import gzip
import pickle
import sqlite3
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from matattn.datasets import acac, mlearn, potential_files
from matattn.errors import DataError


def atoms(number=0, stress=True, **info):
    generator = np.random.default_rng(number)
    made = Atoms("Si2", positions=[[0, 0, 0], [1.3, 1.4, 1.2 + 0.01 * number]],
                 cell=5.4 * np.eye(3), pbc=True, info=info)  # fmt: skip
    force = generator.normal(size=3)
    results = {"energy": -8.0 - number, "forces": np.array([force, -force])}
    if stress:
        results["stress"] = np.array([1, 2, 3, 4, 5, 6]) * 1e-3
    made.calc = SinglePointCalculator(made, **results)
    return made


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.db", "a.traj", "a.json"])
def test_formats_have_the_same_frames(tmp_path, name):
    many = [atoms(number, group="bulk") for number in range(4)]
    form = {"format": "extxyz"} if name.endswith("xyz") else {}
    write(tmp_path / name, many, **form)
    data = potential_files.load("mine", str(tmp_path / name))
    assert len(data.frames) == 4 and not data.doubts
    for frame, made in zip(data.frames, many, strict=True):
        assert frame.energy == pytest.approx(made.get_potential_energy())
        np.testing.assert_allclose(frame.forces, made.get_forces(), atol=1e-7)
        np.testing.assert_allclose(frame.pos, made.positions, atol=1e-7)
        expected = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) * 1e-3
        np.testing.assert_allclose(frame.stress, expected, atol=1e-9)
    if name.endswith("xyz"):
        assert {frame.group for frame in data.frames} == {"bulk"}


def test_labels_under_keys_of_their_own(tmp_path):
    made = atoms(stress=False)
    made.calc = None
    made.info |= {"REF_energy": -3.0, "dft": -4.0}
    made.arrays["REF_forces"] = np.array([[0.1, 0, 0], [-0.1, 0, 0]])
    write(tmp_path / "a.xyz", made, format="extxyz")
    (frame,) = potential_files.load("mine", str(tmp_path / "a.xyz")).frames
    assert frame.energy == -3 and frame.forces[0, 0] == 0.1 and np.isnan(frame.stress).all()
    (frame,) = potential_files.load("mine", str(tmp_path / "a.xyz"), energy_key="dft").frames
    assert frame.energy == -4
    with pytest.raises(DataError, match="has no 'xyz' .* its keys: .*REF_energy"):
        potential_files.load("mine", str(tmp_path / "a.xyz"), energy_key="xyz")


def test_molecules_and_compressed_files(tmp_path):
    water = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    water.calc = SinglePointCalculator(water, energy=-14.0, forces=np.zeros((3, 3)))
    write(tmp_path / "a.extxyz", water)
    (tmp_path / "b.extxyz.gz").write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    (tmp_path / "a.extxyz").unlink()
    (frame,) = potential_files.load("mine", str(tmp_path)).frames
    assert not frame.cell.any() and frame.energy == -14 and np.isnan(frame.stress).all()


def broken(change):
    def make(path):
        made = atoms()
        change(made)
        write(path, made, format="extxyz")

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("hello"), "cannot be read"),
        (broken(lambda made: made.calc.results.clear()), "has no energy, forces or stress"),
        (broken(lambda made: made.calc.results.update(stress=np.full(6, 50.0))), "in kBar or GPa"),
        (broken(lambda made: made.set_pbc([True, True, False])), "periodic in some directions"),
        (broken(lambda made: made.calc.results.update(energy=np.nan, stress=np.full(6, np.nan),
                                                      forces=np.full((2, 3), np.nan))),
         "has no energy"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path, make, message):
    path = tmp_path / "a.xyz"
    make(path)
    with pytest.raises(DataError, match=f"a.xyz.*{message}"):
        potential_files.load("mine", str(path))


class Program:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["a.traj", "a.json", "a.db", "a.xyz", "a.xml"])
def test_no_file_is_unpickled_or_changed(tmp_path, name):
    content = pickle.dumps(Program(tmp_path / "ran"))
    for begin in (b"", b"PickleTrajectory"):
        (tmp_path / name).write_bytes(begin + content)
        with pytest.raises(DataError, match="cannot be read"):
            potential_files.load("mine", str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == begin + content
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_database_of_something_else_stays_as_it_is(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE mine (x)")
    before = (tmp_path / "a.db").read_bytes()
    with pytest.raises(DataError, match="is not a database of ASE"):
        potential_files.load("mine", str(tmp_path / "a.db"))
    assert (tmp_path / "a.db").read_bytes() == before


def test_other_files_and_splits_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        potential_files.load("mine", str(tmp_path / "none.xyz"))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"expected one of .xyz"):
        potential_files.load("mine", str(tmp_path / "a.csv"))
    write(tmp_path / "a.xyz", [atoms(n, split="train") for n in range(3)], format="extxyz")
    data = potential_files.load("mine", str(tmp_path / "a.xyz"), split="official")
    assert data.rows("train") == [0, 1, 2]
    with pytest.raises(DataError, match="choose random or official"):
        potential_files.load("mine", str(tmp_path / "a.xyz"), split="formula")


def test_mlearn_has_official_rows(tmp_path):
    for split, count in (("train", 20), ("test", 4)):
        text = tmp_path / f"mlearn_Si_{split}.extxyz"
        write(text, [atoms(number) for number in range(count)])
        (tmp_path / f"{text.name}.gz").write_bytes(gzip.compress(text.read_bytes()))
    data = mlearn.load("mlearn", str(tmp_path), "Si")
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [18, 2, 4]
    assert data.rows("test") == [20, 21, 22, 23]
    with pytest.raises(DataError, match="data.element='Fe': choose Cu"):
        mlearn.load("mlearn", str(tmp_path), "Fe")
    with pytest.raises(DataError, match="no such file"):
        mlearn.load("mlearn", str(tmp_path), "Mo")


def test_acac_has_official_rows(tmp_path):
    for part, count in dict.fromkeys(acac.PARTS, 10).items():
        molecules = []
        for number in range(2 if part == "isolated_atoms" else count):
            lone = part == "isolated_atoms"
            made = Atoms("CH"[number] if lone else "CO", [[0, 0, 0], [0, 0, 1.2]][: 2 - lone])
            made.info = {"REF_energy": -3.0 - number}
            if "300K" in part:
                made.arrays["REF_forces"] = np.array([[0, 0, 0.1], [0, 0, -0.1]])
            molecules.append(made)
        write(tmp_path / "part.extxyz", molecules, format="extxyz")
        whole = gzip.compress((tmp_path / "part.extxyz").read_bytes())
        (tmp_path / f"acac_{part}.extxyz.gz").write_bytes(whole)
    data = acac.load("acac", str(tmp_path))
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [11, 1, 40]
    lone = [data.frames[row] for row in data.rows("train") if data.frames[row].is_lone_atom]
    assert len(lone) == 2 and {frame.group for frame in lone} == {"lone atoms"}
    assert {data.frames[row].group for row in data.rows("test")} == {
        "300 K", "600 K", "dihedral", "H transfer"
    }  # fmt: skip
    with pytest.raises(DataError, match="expected a share"):
        acac.load("acac", str(tmp_path), val=1.0)
    with pytest.raises(DataError, match="no such folder; set MATATTN_DATA"):
        acac.load("acac", str(tmp_path / "none"))


def test_published_numbers_of_rows(data_dir):
    """Zuo et al. (2020), table of the data; Batatia et al. (2022)."""
    folder = str(data_dir / "potentials")
    silicon = mlearn.load("mlearn", folder, "Si", val=0)
    assert [len(silicon.rows(split)) for split in ("train", "val", "test")] == [214, 0, 25]
    molecules = acac.load("acac", folder, val=0)
    groups = Counter(frame.group for frame in molecules.frames)
    assert groups == {"lone atoms": 3, "300 K": 500 + 650, "600 K": 650, "dihedral": 45,
                      "H transfer": 15}  # fmt: skip
    assert len(molecules.rows("test")) == 650 + 650 + 45 + 15 and not molecules.doubts
    assert molecules.elements() == [1, 6, 8]
