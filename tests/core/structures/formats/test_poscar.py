"""POSCAR as VASP reads it, and what it must not be taken for."""

import gzip

import numpy as np
import pytest

from matattn.errors import StructureError
from matattn.structures.files import entries, read
from matattn.structures.remarks import doubts_of, remarks_of

ROWS = ["0 0 0", "0.5 0.5 0.5", "0.3 0.3 0", "0.7 0.7 0", "0.8 0.2 0.5", "0.2 0.8 0.5"]
CELL = ["4.6 0 0", "0.1 4.6 0", "0 0 2.9"]


def poscar(
    title="TiO2", scale="1.0", cell=CELL, head=("Ti O", "2 4"), mode="Direct", rows=ROWS, end=()
):
    return "\n".join([title, scale, *cell, *head, mode, *rows, *end]) + "\n"


def labelled(labels):
    return [f"{row} {label}" for row, label in zip(ROWS, labels.split(), strict=True)]


@pytest.fixture
def written(tmp_path):
    def write(text, name="POSCAR"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def only(path):
    (structure,) = read(path)
    return structure


@pytest.mark.parametrize(
    "text",
    [
        poscar(),
        poscar(scale="1.0 ! scale", head=("Ti O ! species", "2 4 # numbers")),
        poscar(scale="1.0D0", cell=["4.6D0 0 0", "0.1d+0 4.6 0 second", "0 0 29.E-1"]),
        poscar(scale="1 1 1"),
        poscar(scale="0.5", cell=["9.2 0 0", "0.2 9.2 0", "0 0 5.8"]),
        poscar(scale="2 1 0.5", cell=["2.3 0 0", "0.05 4.6 0", "0 0 5.8"]),
        poscar(scale=f"{-4.6 * 4.6 * 2.9}", cell=["46 0 0", "1 46 0", "0 0 29"]),
        poscar(head=("Ti_sv O_GW", "2 4")),
        poscar(head=("Ti_sv/1a2b3c O_s/ff", "2 4")),
        poscar(head=("Ti Ti O", "1 1 4")),
        poscar(head=("Ti", "O", "2", "4")),
        poscar(head=("Ti O", "2", "4")),
        poscar(mode="direct lattice"),
        poscar(mode="Selective dynamics\nDirect", rows=[f"{row} T T F" for row in ROWS]),
        poscar(mode="s\nd", rows=[f"{row} .TRUE. F T" for row in ROWS]),
        poscar(rows=labelled("Ti Ti O O O O")),
        poscar(rows=labelled("!Ti1 !Ti2 !O1 !O2 !O !O")),
        poscar(rows=[f"{row} ! I moved it" for row in ROWS]),
        poscar(end=["", "0 0 0", "0 0 0", "0.1 0 0", "0 0 0", "0 0 0", "0 0 0"]),
        poscar(end=["Lattice velocities and vectors", "1", "0 0 0"]),
        poscar(title=""),
        poscar(title="TiO2 gemäß Müller").encode("latin-1"),
        poscar().replace("\n", "\r\n"),
        "\ufeff" + poscar(),
        poscar().encode("utf-16"),
        poscar(title="O Ti"),  # the symbols count
    ],
)  # fmt: skip
def test_what_vasp_reads(written, text):
    structure = only(written(text))
    assert structure.formula == "Ti2 O4"
    assert structure.lattice.matrix == pytest.approx(
        np.array([[4.6, 0, 0], [0.1, 4.6, 0], [0, 0, 2.9]])
    )
    assert structure.frac_coords == pytest.approx(
        np.array([[float(x) for x in row.split()] for row in ROWS])
    )
    assert remarks_of(structure) == doubts_of(structure) == []


@pytest.mark.parametrize("mode", ["Cartesian", "cart", "K", "k"])
@pytest.mark.parametrize(
    "scale, factor", [("2", [2, 2, 2]), (f"{-8 * 64}", [2, 2, 2]), ("1 2 3", [1, 2, 3])]
)
def test_cartesian_coordinates_are_scaled_as_the_cell(written, mode, scale, factor):
    cell = ["4 0 0", "0 4 0", "0 0 4"]
    text = poscar(scale=scale, cell=cell, head=("Cs Cl", "1 1"), mode=mode,
                  rows=["0 0 0", "2 2 1.6"])  # fmt: skip
    structure = only(written(text))
    assert structure.lattice.abc == pytest.approx(4 * np.array(factor))
    assert structure.frac_coords[1] == pytest.approx([0.5, 0.5, 0.4])


def test_a_left_handed_cell_with_a_volume(written):
    text = poscar(scale="-64", cell=["0 1 0", "1 0 0", "0 0 1"], head=("Cs Cl", "1 1"),
                  mode="C", rows=["0 0 0", "0.5 0.5 0.4"])  # fmt: skip
    structure = only(written(text))
    assert structure.volume == pytest.approx(64)
    assert structure.cart_coords[1] == pytest.approx([2, 2, 1.6])


@pytest.mark.parametrize(
    "text, message",
    [
        (poscar(head=("Ti O", "2")), "line 7: 2 symbols, 1 number: Ti O; 2"),
        (poscar(head=("Ti", "2 4")), "line 7: 1 symbol, 2 numbers"),
        (poscar(head=("Ti O", "2 4.5")), "line 7: expected whole numbers of atoms, got '2 4.5'"),
        (poscar(head=("Ti O", "2 -4")), "line 7: expected whole numbers of atoms"),
        (poscar(head=("Ti O", "0 0")), "declares no atoms"),
        (poscar(head=("Ti O", "two four")), "line 7: 'two' is not a chemical element"),
        (poscar(head=("A B", "2 4")), "'A' is not a chemical element"),
        (poscar(head=("H.5 O", "2 4")), "'H.5' is not a chemical element"),
        (poscar(head=("OH O", "2 4")), "'OH' is not a chemical element"),
        (poscar(rows=ROWS[:5]), "declares 6 atoms, and has 5 coordinates"),
        (poscar(rows=[*ROWS[:5], "", "0 0 0"]), "declares 6 atoms, and has 5 coordinates"),
        (poscar(head=("Ti O", "2 99999999999")), "declares 100000000001 atoms, and has 6"),
        (poscar(head=("Ti O", "2 3")), "declares 5 atoms, and has more coordinates"),
        (poscar(mode="Fractional"), "line 8: expected Direct or Cartesian, got 'Fractional'"),
        (poscar(mode=""), "line 8: expected Direct or Cartesian, got ''"),
        (poscar(scale="0"), "line 2: the scale is 0.0"),
        (poscar(scale="-1 1 1"), "line 2: the scale is -1.0 1.0 1.0"),
        (poscar(scale="1 1"), "line 2: the scale: has 2 numbers; expected 1 or 3"),
        (poscar(scale="one"), "line 2: the scale: 'one' is not a number"),
        (poscar(scale="1_0"), "line 2: the scale: '1_0' is not a number"),
        (poscar(scale="nan"), "line 2: the scale: 'nan' is not a number"),
        (poscar(cell=["4.6 0", "0 4.6 0", "0 0 3"]), "line 3: lattice vector 1: has 2 numbers"),
        (poscar(cell=["4.6 0 0 0", "0 4.6 0", "0 0 3"]), "vector 1: has 4 numbers; expected 3"),
        (poscar(cell=["4,6 0 0", "0 4.6 0", "0 0 3"]), "line 3: lattice vector 1: '4,6' is not"),
        (poscar(cell=["1 0 0", "2 0 0", "0 0 3"]), "the cell has no volume"),
        (poscar(rows=["0 0 nan", *ROWS[1:]]), "line 9: atom 1: 'nan' in place of a coordinate"),
        (poscar(rows=["0 0", *ROWS[1:]]), "line 9: atom 1: '0 0' in place of a coordinate"),
        (poscar(rows=[f"{n} {row}" for n, row in enumerate(ROWS)]), "atom 1: 4 numbers; expected"),
        (poscar(rows=[*ROWS[:1], "0.5 0.5 0.5 O", *ROWS[2:]]),
         "atom 2 is Ti by the symbols and numbers above, and O at the end of its line"),
        (poscar(head=("2 4",)), "has no element symbols (VASP 4); write them in a line above"),
        (poscar(head=("2 4",), title="Ti2 O4 cell"), "has no element symbols (VASP 4)"),
        (poscar(head=("2 4",), title="Ti O oxide"), "has no element symbols (VASP 4)"),
        ("TiO2\n1.0\n1 0 0", "ends before lattice vector 2"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(written, text, message):
    path = written(text)
    with pytest.raises(StructureError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_symbols_in_capitals_are_told(written):
    structure = only(written(poscar(head=("TI O", "2 4"))))
    assert structure.formula == "Ti2 O4"
    assert remarks_of(structure) == ["labels taken for elements: TI as Ti"]
    structure = only(written(poscar(head=("CA_sv D", "2 4"))))
    assert structure.formula == "Ca2 H4"
    assert remarks_of(structure) == ["labels taken for elements: CA_sv as Ca, D as H"]


def test_vasp_4_with_labels_or_a_title(written):
    structure = only(written(poscar(head=("2 4",), rows=labelled("Ti Ti O O O O"))))
    assert structure.formula == "Ti2 O4" and doubts_of(structure) == []
    assert remarks_of(structure) == ["elements taken from the ends of the coordinate lines"]
    structure = only(written(poscar(head=("2 4",), title="Ti O")))
    assert structure.formula == "Ti2 O4"
    assert doubts_of(structure) == ["elements taken from the title, Ti O: the file names no others"]


def test_fluorine_after_the_flags_of_selective_dynamics(written):
    rows = ["0 0 0 T T T Li", "0.5 0.5 0.5 F F F F"]
    path = written(poscar(head=("1 1",), mode="Selective dynamics\nDirect", rows=rows))
    assert only(path).formula == "Li1 F1"
    rows = ["0 0 0 F F F F", "0.5 0.5 0.5 T T T F"]
    with pytest.raises(StructureError, match="atom 1 is Li by the symbols.* and F at the end"):
        read(written(poscar(head=("Li F", "1 1"), mode="S\nDirect", rows=rows)))


def test_a_potcar_beside_is_not_read(written):
    written("  PAW_PBE Na 01Jan2000\n   1.0\n TITEL = PAW_PBE Na\n", "POTCAR")
    with pytest.raises(StructureError, match="has no element symbols"):
        read(written(poscar(head=("6",), title="x")))


@pytest.mark.parametrize("name", ["CONTCAR", "CHGCAR", "LOCPOT", "PARCHG", "ELFCAR", "AECCAR0"])
def test_heads_of_grids(written, name):
    text = poscar(end=["", "  2 2 1", "0.1 0.2 0.3 0.4"])
    assert only(written(text, name)).formula == "Ti2 O4"
    path = written(gzip.compress(text.encode()), f"{name}.gz")
    (entry,) = entries(path)
    assert entry.id == name and entry.structure.formula == "Ti2 O4"


def test_frames_of_xdatcar(written):
    """The head may be repeated, when the cell changes."""
    head = "x\n1\n4 0 0\n0 4 0\n0 0 4\nCs Cl\n1 1\n"
    frame = "Direct configuration=     1\n0 0 0\n0.5 0.5 0.{n}\n"
    text = head + frame.format(n=4) + frame.format(n=5)
    text += head.replace("4 0 0\n0 4", "5 0 0\n0 4") + frame.format(n=6)
    first, second, third = entries(written(text, "XDATCAR"))
    assert [entry.structure[1].c for entry in (first, second, third)] == [0.4, 0.5, 0.6]
    assert second.structure.lattice.a == 4 and third.structure.lattice.a == 5
    assert second.id == "XDATCAR:2" and third.place.endswith("XDATCAR, frame 3")
    *good, cut = entries(written(text[:-12], "XDATCAR"))
    assert len(good) == 2 and "declares 2 atoms, and has 1 coordinates" in str(cut.structure)


VELOCITIES = ["", *6 * ["0.1E-02 0.2E-02 0.0"]]
LATTICE_VELOCITIES = ["Lattice velocities and vectors", "1", *6 * ["0.1E-02 0.2E-02 0.0"]]


@pytest.mark.parametrize(
    "between",
    [[], [""], VELOCITIES, [*LATTICE_VELOCITIES, *VELOCITIES], [*VELOCITIES, "", "1", "0.5E+00"]],
)
@pytest.mark.parametrize("name", ["POSCAR", "gatheredPOSCARS", "all.vasp"])
def test_structures_one_after_the_other(written, between, name):
    second = poscar(title="EA2 4.6 sym.group: 136", head=("Zr O", "2 4"), scale="-80.0")
    text = poscar(end=between) + second + poscar(title="", head=("Sn O", "2 4"))
    first, second, third = entries(written(text, name))
    assert [e.structure.formula for e in (first, second, third)] == ["Ti2 O4", "Zr2 O4", "Sn2 O4"]
    assert second.place.endswith(f"{name}, line {15 + len(between)}")
    assert second.structure.volume == pytest.approx(80)


def test_what_follows_one_structure_is_no_other(written):
    for end in (VELOCITIES, LATTICE_VELOCITIES, [*LATTICE_VELOCITIES, *VELOCITIES], ["", "2 2 2"]):
        assert only(written(poscar(end=end))).formula == "Ti2 O4"


def test_a_bad_structure_after_a_good_one_is_told(written):
    good, bad = entries(written(poscar() + poscar(head=("Ti Qq", "2 4"))))
    assert good.structure.formula == "Ti2 O4" and "line 20: 'Qq' is not" in str(bad.structure)


@pytest.mark.parametrize("name", ["SPOSCAR", "BPOSCAR-001", "CENTCAR", "bestPOSCARS", "x.POSCAR"])
def test_names_of_other_programs(written, name):
    assert only(written(poscar(), name)).formula == "Ti2 O4"


def test_direct_coordinates_that_look_like_lengths_are_doubted(written):
    rows = [" ".join(f"{float(x) * 4.6:.4f}" for x in row.split()) for row in ROWS]
    assert "lie in the cell if they are in" in doubts_of(only(written(poscar(rows=rows))))[0]
    assert not doubts_of(only(written(poscar(rows=rows, mode="Cartesian"))))
    unwrapped = [*ROWS[:4], "2.8 -3.2 0.5", "0.2 0.8 0.5"]
    assert not doubts_of(only(written(poscar(rows=unwrapped))))


def test_blank_lines_between_frames(written):
    head = "x\n1\n4 0 0\n0 4 0\n0 0 4\nCs Cl\n1 1\n"
    frame = "\nDirect configuration=     1\n0 0 0\n0.5 0.5 0.5\n"
    assert len(list(entries(written(head + 3 * frame + "\n" + head + frame, "XDATCAR")))) == 4
