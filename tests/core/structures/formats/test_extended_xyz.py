"""Frames of XYZ: what a damaged one loses, which labels are elements, and periodicity."""

import gzip

import numpy as np
import pytest
from pymatgen.core import Molecule

from matattn.datasets import structure_formats
from matattn.datasets.structures_io import BESIDE
from matattn.errors import StructureError
from matattn.structures.files import entries, read
from matattn.structures.formats.extended_xyz import read_frames
from matattn.structures.remarks import remarks_of

LATTICE = 'Lattice="4.2 0 0 0.1 4.2 0 0 0 4.2"'
PROPERTIES = "Properties=species:S:1:pos:R:3"


def read_all(path):
    """Return all rows of a table, and the messages about others."""
    rows, bad = structure_formats.read_rows(path)
    return list(rows), bad


def frame(first="Na", comment=f"{LATTICE} {PROPERTIES}", count=2, rows=None):
    rows = [f"{first} 0 0 0", "Cl 2.1 2.1 2.1"] if rows is None else rows
    return "\n".join([str(count), comment, *rows]) + "\n"


@pytest.fixture
def written(tmp_path):
    def write(text, name="a.extxyz"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def formulas(path):
    return [str(e.structure) if isinstance(e.structure, StructureError) else e.structure.formula
            for e in entries(path)]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        frame(), frame().replace("\n", "\r\n"), "\ufeff" + frame(), frame().encode("utf-16"),
        frame(comment=f'{LATTICE} {PROPERTIES} note="Müller"').encode("latin-1"),
        frame(comment=f'{LATTICE} {PROPERTIES} pbc="T T T"'),
        frame(comment=f"{LATTICE} {PROPERTIES} pbc=[True, True, True]"),
        frame(comment=f'{LATTICE} {PROPERTIES} pbc="1 1 1"'), frame(comment=LATTICE),
        frame(comment="Lattice=[[4.2, 0, 0], [0.1, 4.2, 0], [0, 0, 4.2]]"),
        frame(comment="Lattice={4.2 0 0 0.1 4.2 0 0 0 4.2} energy = -3 flag"),
        frame(comment=f'{LATTICE} stress="1 2 3 4 5 6" virial="1 2"'),
        frame(comment=f'{LATTICE} cell="1 0 0 0 1 0 0 0 1"'),
        frame(comment=f"{LATTICE} Properties=species:S:1:pos:R:3:forces:R:3",
              rows=["Na 0 0 0 1 1 1", "Cl 2.1 2.1 2.1 0 0 nan"]),
        frame(comment=f"{LATTICE} Properties=pos:R:3:Z:I:1", rows=["0 0 0 11", "2.1 2.1 2.1 17"]),
        frame(comment=f"{LATTICE} Properties=id:I:1:species:S:1:pos:R:3:Z:I:1",
              rows=["1 Na 0 0 0 11", "2 Cl 2.1 2.1 2.1 17"]),
        "\n" + frame() + "\n\n",
    ],
)  # fmt: skip
def test_one_crystal(written, text):
    (structure,) = read(written(text))
    assert structure.formula == "Na1 Cl1" and remarks_of(structure) == []
    assert structure.lattice.matrix[1].tolist() == [0.1, 4.2, 0]
    assert structure.cart_coords[1] == pytest.approx([2.1, 2.1, 2.1])


def test_a_damaged_frame_loses_only_itself(written):
    short = frame(count=3)
    path = written(frame("Li") + frame("OH") + frame("K") + short + frame("Rb") + "\n" + frame("D"))
    first, second, third, fourth, fifth, sixth = formulas(path)
    assert [first, third, fifth, sixth] == ["Li1 Cl1", "K1 Cl1", "Rb1 Cl1", "H1 Cl1"]
    assert second == f"{path}, frame 2: atom 1: 'OH' is not a chemical element"
    assert fourth == f"{path}, frame 4: declares 3 atoms, and has 2"


@pytest.mark.parametrize(
    "damaged, message",
    [
        (frame(count="two"), "expected a number of atoms, got 'two'; the frames from here on"),
        (frame(count=1), "declares 1 atoms, and has more; the frames from here on"),
        (frame(count="9" * 5000), "expected a number of atoms"),
    ],
)
def test_a_damaged_number_of_atoms_loses_the_rest(written, damaged, message):
    path = written(frame() + damaged + frame())
    good, bad = formulas(path)
    assert good == "Na1 Cl1" and bad.startswith(f"{path}, frame 2: ") and message in bad


@pytest.mark.parametrize(
    "label, symbol",
    [("Na+", "Na"), ("O2-", "O"), ("Fe3+", "Fe"), ("Fe+3", "Fe"), ("Na1", "Na"), ("Na_1", "Na"),
     ("O-2", "O"), ("NA", "Na"), ("TI", "Ti"), ("na", "Na"), ("D", "H")],
)  # fmt: skip
def test_labels_that_are_surely_elements(written, label, symbol):
    (structure,) = read(written(frame(label)))
    assert structure[0].specie.symbol == symbol
    assert remarks_of(structure) == [f"labels taken for elements: {label} as {symbol}"]


@pytest.mark.parametrize("label", ["OH", "HOH", "WAT", "T1", "T", "X", "Cg", "Dum", "OW", "Q", "D1",
                                   "CA", "ca", "HO", "119", "VEC1", "Na+Cl", "*", "0"])  # fmt: skip
def test_labels_that_are_none(written, label):
    (text,) = formulas(written(frame(label)))
    assert "frame 1: atom 1: " in text and repr(label) in text


def test_atomic_numbers_and_types(written):
    rows = ["8 0 0 0", "1 0 0.76 0.59", "1 0 -0.76 0.59"]
    (water,) = read(written(frame(comment="water", count=3, rows=rows), "a.xyz"))
    assert isinstance(water, Molecule) and water.formula == "H2 O1"
    assert remarks_of(water) == ["species taken for atomic numbers"]
    for types in ("12", "11", "21"):
        rows = [f"{kind} {n} 0 0" for n, kind in enumerate(types)]
        (text,) = formulas(written(frame(rows=rows)))
        assert "may be types of LAMMPS; write symbols" in text


@pytest.mark.parametrize(
    "comment, rows, message",
    [
        ('pbc="T T T"', None, 'is periodic, and has no Lattice="...", nine numbers'),
        ('cell="4 0 0 0 4 0 0 0 4"', None, 'has cell=; write it as Lattice="..."'),
        ('lattice="4 0 0 0 4 0 0 0 4"', None, "has lattice=; write it as Lattice"),
        ('box="4 4 4"', None, "has box=; write it as Lattice"),
        ('Lattice="4 0 0 0 4 0 0 0"', None, "has a Lattice that is not nine numbers"),
        ('Lattice="4 0 0 0 nan 0 0 0 4"', None, "has a Lattice that is not nine numbers"),
        ('Lattice="4 0 0 4 0 0 0 0 4"', None, "the cell has no volume"),
        (f'{LATTICE} pbc="T T F"', None, "periodic in some directions only (pbc T T F)"),
        (f'{LATTICE} PBC="T F T"', None, "periodic in some directions only (pbc T F T)"),
        (f"{LATTICE} pbc=perhaps", None, "pbc is 'perhaps'"),
        (f"{LATTICE} Properties=species:S:1", None, "has no pos:R:3, the positions"),
        (f"{LATTICE} Properties=pos:R:3", None, "has no species:S:1, the elements"),
        (f"{LATTICE} Properties=species:S:1:frac:R:3", None, "has no pos:R:3"),
        (f"{LATTICE} Properties=species:S", None, "expected name:type:columns"),
        (f"{LATTICE} Properties=species:Q:1:pos:R:3", None, "expected name:type:columns"),
        (f"{LATTICE} Properties=species:S:1:pos:R:3:f:R:3", None,
         "atom 1 has 4 columns; expected 7"),
        (f"{LATTICE} Properties=species:S:1:pos:R:3", ["Na 0 0 0", "Cl 1 1 1 5"],
         "atom 2 has 5 columns; expected 4"),
        (LATTICE, ["Na 0 0 0", "Cl 1 1"], "atom 2 has 3 columns; expected 4"),
        (LATTICE, ["Na 0 0 0", "Cl 1 nan 1"], "atom 2 has the coordinate 'nan', which is no"),
        (LATTICE, ["Na 0 0 0", "Cl 1 1_5 1"], "atom 2 has the coordinate '1_5'"),
        (LATTICE, ["Na 0 0 0"], "declares 2 atoms, and has 1"),
        (f"{LATTICE} Properties=species:S:1:pos:R:3:Z:I:1", ["Na 0 0 0 11", "Cl 1 1 1 18"],
         "the columns species and Z name different elements"),
        (f"{LATTICE} Properties=pos:R:3:Z:I:1", ["0 0 0 11", "1 1 1 119"],
         "atom 2: 119 is no atomic number"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why_in_prediction_and_in_data_sets(written, comment, rows, message):
    path = written(frame(comment=comment, rows=rows))
    (text,) = formulas(path)
    assert text.startswith(f"{path}, frame 1: ") and message in text
    rows, bad = read_all(path)
    assert rows == [] and bad[0].startswith(f"{path}:1 (frame 1): ") and message in bad[0]


@pytest.mark.parametrize("comment", ["", "two atoms", PROPERTIES, f'{LATTICE} pbc="F F F"',
                                     "pbc=F energy=-1"])  # fmt: skip
def test_molecules(written, comment):
    (structure,) = read(written(frame(comment=comment)))
    assert isinstance(structure, Molecule) and structure.cart_coords[1].tolist() == [2.1, 2.1, 2.1]


def test_plain_files_may_have_more_columns(written):
    (structure,) = read(written(frame(comment="x", rows=["H 0 0 0 0.1 q", "H 0 0 1 -0.1 q"])))
    assert structure.formula == "H2"


def test_ids_and_values_of_the_comment_line(written):
    comment = f'{LATTICE} {PROPERTIES} energy=-1.5 id=007 name="my salt" ok=T magmom="1 2" n=3'
    path = written(frame(comment=comment) + frame())
    assert [entry.id for entry in entries(path)] == ["007", "a:2"]
    first, _ = read_frames(path)
    assert first.info == {"energy": -1.5, "id": "007", "name": "my salt", "ok": True,
                          "magmom": [1, 2], "n": 3}  # fmt: skip
    rows, bad = read_all(path)
    assert bad == [] and [row["id"] for _, row in rows] == ["007", "a:2"]
    properties = rows[0][1][BESIDE]
    assert properties["energy"] == -1.5 and "magmom" not in properties


def test_training_and_prediction_read_the_same_atoms(written):
    path = written(gzip.compress((frame("D") + frame("Na+") + frame(comment="x")).encode()),
                   "a.xyz.gz")  # fmt: skip
    rows, bad = read_all(path)
    assert bad == [] and [entry.id for entry in entries(path)] == [row["id"] for _, row in rows]
    for (_, row), structure in zip(rows, read(path), strict=True):
        assert [site.specie.Z for site in structure] == row["Z"]
        if isinstance(structure, Molecule):
            assert np.allclose(structure.cart_coords, row["pos"])
        else:
            assert np.allclose(structure.frac_coords, row["frac"])
            assert np.allclose(structure.lattice.matrix, row["lattice"])


def test_other_writers_are_read_as_ase_does(tmp_path):
    ase_io = pytest.importorskip("ase.io")
    from ase import Atoms

    atoms = Atoms("NaCl", [[0, 0, 0], [2, 2.5, 2]], cell=[[4, 0, 0], [1, 5, 0], [0, 2, 4]], pbc=1)
    atoms.info = {"note": 'a "quoted" text', "list": [1, 2]}
    atoms.arrays["forces"] = np.ones((2, 3))
    ase_io.write(tmp_path / "a.extxyz", atoms)
    (structure,) = read(tmp_path / "a.extxyz")
    assert structure.lattice.matrix == pytest.approx(atoms.cell.array)
    assert structure.cart_coords == pytest.approx(atoms.positions)


def test_a_lattice_that_is_given_twice(written):
    (bad, good) = entries(
        written(frame(comment=f"{LATTICE} {LATTICE.replace('4.2', '9')}") + frame())
    )
    assert "has a Lattice given twice; leave one" in str(bad.structure)
    assert good.structure.lattice.c == 4.2


@pytest.mark.parametrize(
    "comment",
    ["CELL 4.2 4.2 4.2 90 90 90", "%PBC 4.2 4.2 4.2 90 90 90", "4.2 0 0 0 4.2 0 0 0 4.2",
     'jmolscript: load "" {1 1 1} unitcell [4.2, 4.2, 4.2, 90, 90, 90]',
     "crystal, lattice: 4.2 0 0 0.1 4.2 0 0 0 4.2"],
)  # fmt: skip
def test_cells_that_other_programs_write_in_the_comment_are_no_molecules(written, comment):
    (entry,) = entries(written(frame(comment=comment)))
    assert "the comment line tells a cell; write it as Lattice=" in str(entry.structure)


@pytest.mark.parametrize(
    "comment", ["gdb 1 157.7 157.7 157.7 0. 13.21 -0.38 0.1", "cell 7", "1 2 3"]
)
def test_other_numbers_in_the_comment_are_no_cell(written, comment):
    assert isinstance(read(written(frame(comment=comment)))[0], Molecule)
