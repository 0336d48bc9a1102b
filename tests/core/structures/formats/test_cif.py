"""Tests of matattn.structures.formats.cif, cif_atoms and cif_symmetry on known crystals."""

import numpy as np
import pytest

from matattn.errors import StructureError
from matattn.structures.formats.cif import parse, parse_text
from matattn.structures.remarks import doubts_of, remarks_of

RUTILE_OPERATIONS = """loop_
_space_group_symop_operation_xyz
'x, y, z'
'-x, -y, z'
'-y+1/2, x+1/2, z+1/2'
'y+1/2, -x+1/2, z+1/2'
'-x+1/2, y+1/2, -z+1/2'
'x+1/2, -y+1/2, -z+1/2'
'y, x, -z'
'-y, -x, -z'
'-x, -y, -z'
'x, y, -z'
'y+1/2, -x+1/2, -z+1/2'
'-y+1/2, x+1/2, -z+1/2'
'x+1/2, -y+1/2, z+1/2'
'-x+1/2, y+1/2, z+1/2'
'-y, -x, z'
'y, x, z'
"""
COLUMNS = "_atom_site_label _atom_site_type_symbol " + " ".join(
    f"_atom_site_fract_{axis}" for axis in "xyz"
)
RUTILE = ("Ti1 Ti 0 0 0", "O1 O 0.305 0.305 0")
CELL = (4.594, 4.594, 2.959, 90, 90, 90)
BRUCITE = (3.142, 3.142, 4.766, 90, 90, 120)
HYDROXIDE = ("Mg1 Mg 0 0 0", "O1 O 0.33333 0.66667 0.2203", "H1 H 0.33333 0.66667 0.4303")
P3M1 = "_space_group_name_H-M_alt 'P -3 m 1'\n"


def cif(*atoms, cell=CELL, symmetry=RUTILE_OPERATIONS, columns=COLUMNS, name="x", extra=""):
    """The text of a CIF; by default rutile, TiO2 with 6 atoms."""
    tags = [*(f"_cell_length_{a}" for a in "abc"), "_cell_angle_alpha", "_cell_angle_beta"]
    tags.append("_cell_angle_gamma")
    lines = [f"{tag} {value}" for tag, value in zip(tags, cell, strict=True)]
    loop = ["loop_", *columns.split(), *(atoms or RUTILE)]
    return "\n".join([f"data_{name}", *lines, extra, symmetry, *loop, ""])


def read(text):
    ((_, _, structure),) = parse_text(text, "a.cif")
    return structure


def check(text, formula, atoms, remark=None, doubt=None):
    """The text is a crystal, and exactly what is told of it."""
    structure = read(text)
    assert not isinstance(structure, StructureError), structure
    assert (structure.composition.reduced_formula, len(structure)) == (formula, atoms)
    for texts, expected in ((remarks_of(structure), remark), (doubts_of(structure), doubt)):
        assert (texts == []) if expected is None else (expected in "; ".join(texts)), texts
    return structure


def refused(text, message):
    error = read(text)
    assert isinstance(error, StructureError), error
    assert str(error).startswith("a.cif: ") and message in str(error)
    assert "\n" not in str(error)


# --- Symmetry ---


def test_rutile():
    structure = check(cif(), "TiO2", 6)
    oxygen = sorted(map(tuple, structure.frac_coords[2:].round(3).tolist()))
    assert oxygen == [
        (0.195, 0.805, 0.5),
        (0.305, 0.305, 0),
        (0.695, 0.695, 0),
        (0.805, 0.195, 0.5),
    ]


@pytest.mark.parametrize(
    "symmetry",
    [
        "_space_group_name_Hall '-P 4n 2n'",
        "_space_group_name_H-M_alt 'P 42/m n m'",
        "_symmetry_space_group_name_H-M P4_2/mnm",
        "_symmetry_Int_Tables_number 136",
        "_space_group_IT_number 136\n_space_group_name_H-M_full 'P 42/m 21/n 2/m'",
        "_space_group.name_H-M_alt 'P 42/m n m'\n_space_group_name_Hall ?",
    ],
)
def test_every_name_of_the_space_group(symmetry):
    check(cif(symmetry=symmetry), "TiO2", 6)


@pytest.mark.parametrize(
    "symmetry, message",
    [
        (
            "loop_\n_symmetry_equiv_pos_as_xyz\n'x;y;z'\n'-x;-y;z'",
            "'x;y;z' is no symmetry operation",
        ),
        (RUTILE_OPERATIONS.replace("'y, x, z'\n", ""), "the 15 symmetry operations are no group"),
        ("_space_group_name_H-M_alt 'P 42/q n m'", "'P 42/q n m' is not one of the 530 settings"),
        ("_space_group_name_Hall 'P 99'", "Hall symbol 'P 99' is not one of the 530"),
        ("_space_group_IT_number 231", "space group number 231 is not one of the 530"),
        ("_space_group_name_H-M_alt 'F m -3 m'\n_space_group_IT_number 227", "they contradict"),
        ("_space_group_name_H-M_alt 'P n m a'\n_space_group_name_Hall '-P 4n 2n'", "contradict"),
        ("_space_group_name_H-M_alt 'F m -3 m'", "does not have the symmetry of F m -3 m"),
        (RUTILE_OPERATIONS + "_space_group_IT_number 225", "lists 16 operations, those of"),
        ("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n_space_group_IT_number 136", "one of them"),
    ],
)
def test_symmetry_that_is_unclear_is_refused(symmetry, message):
    refused(cif(symmetry=symmetry), message)


def test_no_symmetry_at_all_is_told():
    check(cif(symmetry=""), "TiO", 2, doubt="tells no symmetry")
    check(cif(symmetry="_space_group_name_H-M_alt ?"), "TiO", 2, doubt="tells no symmetry")
    check(cif(symmetry="_space_group_name_H-M_alt 'P 1'"), "TiO", 2)


WHOLE = (*RUTILE, "O2 O 0.695 0.695 0", "O3 O 0.195 0.805 0.5", "O4 O 0.805 0.195 0.5",
         "Ti2 Ti 0.5 0.5 0.5")  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [
        "_chemical_formula_sum 'O2 Ti'",
        "_chemical_formula_sum 'O2 Ti'\n_cell_formula_units_Z 2",
        "_exptl_crystal_density_diffrn 4.25",
    ],
)
def test_a_whole_cell_without_symmetry_is_confirmed_by_formula_or_density(told):
    check(cif(*WHOLE, symmetry="", extra=told), "TiO2", 6, remark="tells no symmetry")


def test_one_formula_unit_confirms_no_whole_cell():
    text = cif("Na1 Na 0 0 0", "Cl1 Cl .5 .5 .5", cell=(4.2, 4.2, 4.2, 90, 90, 90), symmetry="",
               extra="_chemical_formula_sum 'Cl Na'")  # fmt: skip
    check(text, "NaCl", 2, doubt="tells no symmetry")


@pytest.mark.parametrize("name", ["P 1", "P m -3 m"])
def test_atoms_far_from_all_others_are_doubted(name):
    symmetry = f"_space_group_name_H-M_alt '{name}'"
    atoms = ("Na1 Na 0 0 0", "Cl1 Cl .5 .5 .5")
    cell = (5.64, 5.64, 5.64, 90, 90, 90)
    check(cif(*atoms, cell=cell, symmetry=symmetry), "NaCl", 2, doubt="far from all others: Na1")
    check(cif(*atoms, cell=cell, symmetry="_space_group_name_H-M_alt 'F m -3 m'"), "NaCl", 8)
    assert not doubts_of(read(cif("Ar1 Ar 0 0 0", cell=cell, symmetry=symmetry)))


@pytest.mark.parametrize("density", ["4.25", "4.3", "4.2(1)", "heavy", "?", "4.19"])
def test_density_agrees_with_the_atoms(density):
    check(cif(extra=f"_exptl_crystal_density_diffrn {density}"), "TiO2", 6)


def test_another_density_is_doubted_unless_formula_and_z_confirm_the_atoms():
    wrong = "_exptl_crystal_density_diffrn 2.13"
    doubt = "density is 2.13 g/cm^3 in the file, and 4.247 of the atoms"
    check(cif(extra=wrong), "TiO2", 6, doubt=doubt)
    check(cif(extra=f"{wrong}\n_chemical_formula_sum 'O2 Ti'"), "TiO2", 6, doubt=doubt)
    confirmed = f"{wrong}\n_chemical_formula_sum 'O2 Ti'\n_cell_formula_units_Z 2"
    check(cif(extra=confirmed), "TiO2", 6)


def test_density_of_a_deuteride():
    atoms = [atom.replace(" H ", " D ") for atom in HYDROXIDE]
    extra = "_exptl_crystal_density_diffrn 2.459"
    check(cif(*atoms, cell=BRUCITE, symmetry=P3M1, extra=extra), "Mg(HO)2", 5, remark="deuterium")
    check(cif(*atoms[:2], cell=BRUCITE, symmetry=P3M1, extra=extra), "MgO2", 3, doubt="density")


def test_the_formula_may_be_that_of_the_moieties():
    text = cif(*HYDROXIDE[:2], cell=BRUCITE, symmetry=P3M1,
               extra="_chemical_formula_sum ?\n_chemical_formula_moiety 'Mg O2 H2'")  # fmt: skip
    refused(text, "no hydrogen has a place")


# LaPO4 in P 1 21/n 1; read in P 1 21/c 1 it is another crystal.
MONAZITE = (
    "La1 La .2815 .1600 .1007", "P1 P .3047 .1639 .6121", "O1 O .2503 .0068 .4450",
    "O2 O .3799 .3315 .4964", "O3 O .4748 .1054 .8042", "O4 O .1277 .2168 .7101",
)  # fmt: skip
P21C = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,-y,-z\n-x,y+1/2,-z+1/2\nx,-y+1/2,z+1/2\n"
P21N = P21C.replace("-x,y+1/2", "-x+1/2,y+1/2").replace("\nx,-y+1/2", "\nx+1/2,-y+1/2")


@pytest.mark.parametrize(
    ("symmetry", "doubt"),
    [
        ("_space_group_IT_number 14", "only the space group number is told, and P 1 21/c 1"),
        (P21C + "_space_group_name_H-M_alt 'P 1 21/n 1'", "not those of the setting P 1 21/n 1"),
        (P21N + "_space_group_name_H-M_alt 'P 1 21/n 1'", None),
        (P21N + "_space_group_name_H-M_alt 'P 21/n'", None),
        (P21N + "_space_group_IT_number 14", None),
        (P21N, None),
    ],
)
def test_settings_that_give_another_crystal_are_doubted(symmetry, doubt):
    cell = (6.8313, 7.0705, 6.5034, 90, 103.27, 90)
    check(cif(*MONAZITE, cell=cell, symmetry=symmetry), "LaPO4", 24, doubt=doubt)


def test_a_number_alone_that_leaves_one_crystal_is_no_doubt():
    check(cif(symmetry="_space_group_IT_number 136"), "TiO2", 6)


@pytest.mark.parametrize(
    ("atoms", "doubt"),
    [
        (("O1 Ti 0 0 0", "Ti1 O 0.305 0.305 0"), "different elements: O1 (Ti), Ti1 (O)"),
        (("Ti1 Ti 0 0 0", "Ti2 O 0.305 0.305 0"), "different elements: Ti2 (O)"),
        (("M1 Ti 0 0 0", "X1 O 0.305 0.305 0"), None),
        (("C1 Ti 0 0 0", "OT O 0.305 0.305 0"), None),
    ],
)
def test_labels_that_contradict_type_symbols_are_doubted(atoms, doubt):
    check(cif(*atoms), "TiO2", 6, doubt=doubt)


def test_a_label_in_small_letters_is_an_element_of_the_formula():
    columns = COLUMNS.replace("_atom_site_type_symbol ", "")
    text = cif("ti1 0 0 0", "o1 .305 .305 0", columns=columns,
               extra="_chemical_formula_sum 'O2 Ti'")  # fmt: skip
    check(text, "TiO2", 6, remark="labels taken as elements of the formula: ti1 (Ti), o1 (O)")


@pytest.mark.parametrize("end", ["\x1a", "\0\0\0", "\n\x1a\n"])
def test_marks_of_the_end_of_a_file(end):
    check(cif() + end, "TiO2", 6)


@pytest.mark.parametrize("dash", ["\u2212", "\u2013"])
def test_operations_with_typographic_minus_signs(dash):
    check(cif(symmetry=RUTILE_OPERATIONS.replace("-", dash)), "TiO2", 6)


def test_an_unknown_name_beside_operations_does_no_harm():
    check(cif(symmetry=RUTILE_OPERATIONS + "_space_group_name_H-M_alt 'my own'"), "TiO2", 6)


def test_operations_without_quotes():
    symmetry = "loop_\n_symmetry_equiv_pos_as_xyz\n x, y, z\n -x, -y, -z\n"
    check(cif(symmetry=symmetry), "TiO2", 3)


def test_monoclinic_axis_by_the_cell():
    atoms = ("Cu0 Cu 0.25 0.25 0", "O1 O 0 0.4184 0.25")
    symmetry = "_symmetry_space_group_name_H-M 'C 2/c'"
    check(cif(*atoms, cell=(4.68, 3.42, 5.13, 90, 99.5, 90), symmetry=symmetry), "CuO", 8)
    right = cif(*atoms, cell=(4.68, 3.42, 5.13, 90, 90, 90), symmetry=symmetry)
    check(right, "CuO", 8, remark="the setting C 1 2/c 1 was assumed")


SPINEL = ("Mg0 Mg 0.125 0.125 0.125", "Al1 Al 0.5 0.5 0.5", "O2 O 0.2624 0.2624 0.2624")


def spinel(symbol, *extra, atoms=SPINEL):
    tags = [f"_space_group_name_H-M_alt '{symbol}'", "_space_group_IT_number 227", *extra]
    return cif(*atoms, cell=(8.083, 8.083, 8.083, 90, 90, 90), symmetry="\n".join(tags))


def test_origins():
    for ending in (":2", "Z", ": 2"):
        check(spinel(f"F d -3 m {ending}"), "MgAl2O4", 56)
    check(spinel("F d -3 m"), "MgAl2O4", 56, remark="F d -3 m :2 was assumed: no other one fits")
    atoms = (*SPINEL[:2], "O2 O 0.28 0.28 0.28")
    unclear = spinel("F d -3 m", atoms=atoms)
    refused(unclear, "gives other crystals: F d -3 m :1 or F d -3 m :2?")
    told = spinel("F d -3 m", "_chemical_formula_sum 'Al2 Mg O4'", atoms=atoms)
    check(told, "MgAl2O4", 56, remark="F d -3 m :2 was assumed")


def test_axes_of_rhombohedral_crystals():
    atoms = ("Al1 Al 0 0 0.3521", "O1 O 0.3065 0 0.25")
    symmetry = "_space_group_name_H-M_alt 'R -3 c'"
    check(cif(*atoms, cell=(4.76, 4.76, 12.99, 90, 90, 120), symmetry=symmetry), "Al2O3", 30)
    atoms = ("Al1 Al 0.3521 0.3521 0.3521", "O1 O 0.5565 0.9435 0.25")
    check(cif(*atoms, cell=(5.13, 5.13, 5.13, 55.3, 55.3, 55.3), symmetry=symmetry), "Al2O3", 10)


def test_cell_that_has_its_symmetry_roughly():
    check(cif(cell=(4.594, 4.60, 2.959, 90, 90, 90)), "TiO2", 6)
    check(cif(cell=(4.594, 4.62, 2.959, 90, 90, 90)), "TiO2", 6, doubt="only within")
    refused(cif(cell=(4.594, 4.9, 2.959, 90, 90, 90)), "does not have the symmetry")


def test_magnetic_crystal():
    symmetry = """loop_
_space_group_symop_magn_operation.xyz
x,y,z,+1
-x,-y,-z,+1
loop_
_space_group_symop_magn_centering.xyz
x,y,z,+1
x+1/2,y+1/2,z+1/2,-1
"""
    check(cif("Fe1 Fe 0 0 0", symmetry=symmetry), "Fe", 2)
    refused(cif(extra="_cell_modulation_dimension 1"), "incommensurately modulated")


# --- Atoms ---


@pytest.mark.parametrize("occupancy", [".", "1", "1.0", "1.000(2)", "1."])
def test_whole_occupancies(occupancy):
    atoms = [f"{atom} {occupancy}" for atom in RUTILE]
    check(cif(*atoms, columns=COLUMNS + " _atom_site_occupancy"), "TiO2", 6)


@pytest.mark.parametrize("occupancy", ["?", "0.9999", "0.999", "0.998(4)", "1.004", "1.01"])
def test_occupancies_that_are_one_are_told(occupancy):
    atoms = [f"{atom} {occupancy}" for atom in RUTILE]
    text = cif(*atoms, columns=COLUMNS + " _atom_site_occupancy")
    check(text, "TiO2", 6, remark="occupancy taken as 1")


@pytest.mark.parametrize(
    "occupancy, message",
    [
        ("0.99", "Ti1 has partial occupancy (0.99)"),
        ("0.9(1)", "partial occupancy"),
        ("1.2", "occupancy of 1.2"),
        ("-0.5", "occupancy of -0.5"),
        ("much", "Ti1: _atom_site_occupancy is 'much', not a number"),
    ],
)
def test_other_occupancies_are_refused(occupancy, message):
    text = cif(f"{RUTILE[0]} {occupancy}", RUTILE[1] + " 1",
               columns=COLUMNS + " _atom_site_occupancy")  # fmt: skip
    refused(text, message)


def test_parts_of_one_element_and_isotopes():
    columns = COLUMNS + " _atom_site_occupancy"
    parts = ("Ti1 Ti3+ 0 0 0 0.4", "Ti2 Ti4+ 0 0 0 0.6", "O1 O 0.305 0.305 0 1")
    check(cif(*parts, columns=columns), "TiO2", 6, remark="parts of one atom: Ti1 and Ti2")
    hydrogen = HYDROXIDE[2].replace("H1 H", "{} {}")
    isotopes = [f"{atom} 1" for atom in HYDROXIDE[:2]]
    isotopes += [hydrogen.format("D1", "D") + " 0.7", hydrogen.format("H1", "H") + " 0.3"]
    text = cif(*isotopes, cell=BRUCITE, symmetry=P3M1, columns=columns)
    check(text, "Mg(HO)2", 5, remark="deuterium taken as H: D1")
    mixed = ("Al1 Al 0 0 0 0.5", "Si1 Si 0 0 0 0.5", "O1 O 0.305 0.305 0 1")
    refused(cif(*mixed, columns=columns), "Al1 and Si1 share a place: partial occupancy")
    text = cif("Ti1 Ti 0 0 0 1", "V1 V 0.5 0 0 0", RUTILE[1] + " 1", columns=columns)
    check(text, "TiO2", 6, remark="occupancy of 0 left out: V1")


BARE = COLUMNS.replace("_atom_site_type_symbol ", "")


@pytest.mark.parametrize(
    "label, element",
    [("Ti1", "Ti"), ("Ti", "Ti"), ("CaM2", "Ca"), ("SiT", "Si"), ("O1A", "O"), ("O(1)", "O"),
     ("Fe3+", "Fe"), ("O2-", "O"), ("Na_1", "Na")],
)  # fmt: skip
def test_labels_that_are_elements(label, element):
    symmetry, cell = "_space_group_IT_number 1", (2, 2, 2, 90, 90, 90)
    structure = read(cif(f"{label} 0 0 0", columns=BARE, symmetry=symmetry, cell=cell))
    assert structure.composition.as_dict() == {element: 1} and not doubts_of(structure)


@pytest.mark.parametrize(
    "label",
    [
        "T1",
        "WAT1",
        "HOH",
        "OH1",
        "Ow1",
        "Dum",
        "Cg1",
        "M1",
        "X",
        "?",
        "Al/Si1",
        "Al,Si",
        "Al0.5Si0.5",
    ],
)
def test_labels_that_are_no_elements(label):
    refused(cif(f"{label} 0 0 0", columns=BARE, symmetry="_space_group_IT_number 1"), "no element")


def test_dubious_labels_need_the_formula():
    text = cif("SI1 0 0 0", "OA 0.305 0.305 0", columns=BARE)
    check(text, "SiO2", 6, doubt="labels without type symbols taken as elements: SI1 (Si)")
    told = text.replace("data_x", "data_x\n_chemical_formula_sum 'O2 Si'")
    check(told, "SiO2", 6, remark="labels taken as elements of the formula: SI1 (Si), OA (O)")


@pytest.mark.parametrize("symbol", ["Ti", "TI", "ti", "Ti4+", "Ti+4", "48Ti", "Tiva"])
def test_type_symbols(symbol):
    check(cif(f"A1 {symbol} 0 0 0", RUTILE[1]), "TiO2", 6)


@pytest.mark.parametrize(
    "symbol", ["OH", "O-H", "Wat", "PO4", "NH4+", "CN", "T", "X", "0.5Al+0.5Si"]
)
def test_type_symbols_that_are_no_elements(symbol):
    refused(cif(f"A1 '{symbol}' 0 0 0", RUTILE[1]), f"A1: the type symbol '{symbol}' is no element")


def test_a_type_symbol_that_is_a_molecule_or_an_element():
    check(cif("A1 CO 0 0 0", RUTILE[1]), "CoO2", 6, doubt="type symbol CO taken as Co: A1")
    check(cif("A1 CO 0 0 0", RUTILE[1], extra="_chemical_formula_sum 'Co O2'"), "CoO2", 6)


def test_dummies_and_hydrogens():
    columns = COLUMNS + " _atom_site_calc_flag"
    atoms = [f"{atom} d" for atom in HYDROXIDE] + ["Cg1 C 0.5 0.5 0.5 dum"]
    text = cif(*atoms, cell=BRUCITE, symmetry=P3M1, columns=columns)
    check(text, "Mg(HO)2", 5, remark="dummy atoms left out: Cg1")
    columns = COLUMNS + " _atom_site_attached_hydrogens"
    atoms = (HYDROXIDE[0] + " 0", HYDROXIDE[1] + " 1")
    refused(
        cif(*atoms, cell=BRUCITE, symmetry=P3M1, columns=columns), "O1 has 1 attached hydrogens"
    )
    text = cif(*HYDROXIDE[:2], cell=BRUCITE, symmetry=P3M1,
               extra="_chemical_formula_sum 'H2 Mg O2'")  # fmt: skip
    refused(text, "the formula is H2 Mg1 O2, and no hydrogen has a place")


def test_formula_and_z():
    check(cif(extra="_chemical_formula_sum 'O2 Ti'\n_cell_formula_units_Z 2"), "TiO2", 6)
    check(cif(extra="_chemical_formula_sum 'Ti2 O4'\n_cell_formula_units_Z 2"), "TiO2", 6)
    wrong = "the formula is O3 Ti1, and the cell holds Ti2 O4"
    check(cif(extra="_chemical_formula_sum 'O3 Ti'"), "TiO2", 6, doubt=wrong)
    check(cif(extra="_chemical_formula_sum 'O2 Zr'"), "TiO2", 6, doubt="the formula is O2 Zr1")
    text = cif(extra="_chemical_formula_sum 'O2 Ti'\n_cell_formula_units_Z 4")
    check(text, "TiO2", 6, doubt="Z is 4 in the file, and the cell holds 2 formula units")
    check(cif(extra="_chemical_formula_sum ?"), "TiO2", 6)


def test_the_file_lists_symmetry_and_all_atoms():
    doubled = (*RUTILE, "O2 O -0.305 -0.305 0", "Ti2 Ti 0.5 0.5 0.5")
    check(cif(*doubled), "TiO2", 6, remark="one atom, given twice: Ti1 and Ti2, O1 and O2")
    refused(cif(*RUTILE, "O2 O 0.34 0.34 0"), "O1 and O2 are only 0.23 Å apart")
    refused(cif(*RUTILE, "N1 N 0.305 0.305 0"), "O1 and N1 are only 0 Å apart")


@pytest.mark.parametrize(
    "x, y, remark, doubt",
    [
        ("1/3", "2/3", None, None),
        ("0.33333", "0.66667", None, None),
        ("0.3334", "0.6667", None, None),
        ("0.333", "0.667", "moved to the special position beside it: Mg1", None),
        ("0.33", "0.67", "moved to the special position beside it: Mg1", None),
        ("0.330000", "0.670000", None, "moved to the special position beside it: Mg1"),
    ],
)
def test_coarse_special_positions(x, y, remark, doubt):
    cell = (5.0, 5.0, 5.2, 90, 90, 120)
    text = cif(f"Mg1 Mg {x} {y} 0.25", cell=cell, symmetry="_space_group_name_H-M_alt 'P 63/m m c'")
    structure = check(text, "Mg", 2, remark, doubt)
    assert np.sort(structure.frac_coords[:, 0]) == pytest.approx([1 / 3, 2 / 3], abs=2e-4)


def test_a_split_place_is_no_special_position():
    text = cif("Ti1 Ti 0.03 0 0", "O1 O 0.305 0.305 0")
    refused(text, "Ti1 is 0.28 Å from an image of itself")


def test_multiplicities_of_the_file():
    columns = COLUMNS + " _atom_site_symmetry_multiplicity"
    check(cif(RUTILE[0] + " 2", RUTILE[1] + " 4", columns=columns), "TiO2", 6)
    text = cif(RUTILE[0] + " 2", RUTILE[1] + " 8", columns=columns)
    check(text, "TiO2", 6, doubt="not as many as the file says: O1 (4, and 8 in the file)")


@pytest.mark.parametrize(
    "atom, message",
    [
        ("O1 O 0.305 ? 0", "O1: _atom_site_fract_y is missing"),
        ("O1 O 0.305 . 0", "O1: _atom_site_fract_y is missing"),
        ("O1 O 0,305 0.305 0", "'0,305', not a number"),
        ("O1 O 0.305 0.305", "a loop has 9 values for 5 columns"),
        ("O1 O 1_0 0 0", "not a number"),
        ("O1 O nan 0 0", "not a number"),
        ("O1 O 1e999 0 0", "not a number"),
    ],
)
def test_bad_coordinates(atom, message):
    refused(cif(RUTILE[0], atom), message)


def test_minus_of_typesetters_is_a_minus():
    structure = check(cif(RUTILE[0], "O1 O \N{MINUS SIGN}0.305 0.695 0"), "TiO2", 6)
    assert sorted(structure.frac_coords[2:, 0].round(3)) == [0.195, 0.305, 0.695, 0.805]


def test_cartesian_coordinates():
    columns = COLUMNS.replace("fract", "Cartn")
    atoms = ("Ti1 Ti 0 0 0", "O1 O 1.40117 1.40117 0")
    check(cif(*atoms, columns=columns), "TiO2", 6, remark="Cartesian coordinates")
    axes = "_atom_sites_Cartn_transform_axes 'c along z, a* along x'"
    refused(cif(*atoms, columns=columns, extra=axes), "axes of its own")
    matrix = "\n".join(
        f"_atom_sites_Cartn_transf_matrix[{i}][{j}] 0" for i in (1, 2, 3) for j in (1, 2, 3)
    )
    rows = [(0, 1 / 4.594, 0), (-1 / 4.594, 0, 0), (0, 0, 1 / 2.959)]  # turned about z
    matrix += "".join(
        f"\n_atom_sites.fract_transf_matrix[{i + 1}][{j + 1}] {rows[i][j]}"
        for i in range(3) for j in range(3)
    )  # fmt: skip
    matrix += "".join(f"\n_atom_sites.fract_transf_vector[{i}] 0" for i in (1, 2, 3))
    turned = ("Ti1 Ti 0 0 0", "O1 O -1.40117 1.40117 0")
    check(cif(*turned, columns=columns, extra=matrix), "TiO2", 6, remark="Cartesian")


def test_disorder_and_models():
    columns = COLUMNS + " _atom_site_disorder_group"
    refused(cif(RUTILE[0] + " 1", RUTILE[1] + " 2", columns=columns), "is disordered")
    check(cif(RUTILE[0] + " .", RUTILE[1] + " 1", columns=columns), "TiO2", 6)
    columns = COLUMNS + " _atom_site.pdbx_PDB_model_num"
    refused(cif(RUTILE[0] + " 1", RUTILE[1] + " 2", columns=columns), "holds 2 models")


# --- The cell, blocks and files ---


@pytest.mark.parametrize(
    "tag, value, message",
    [
        ("_cell_angle_alpha", "", "has no _cell_angle_alpha"),
        ("_cell_angle_alpha", "?", "has no _cell_angle_alpha"),
        ("_cell_length_b", "4.594 Å", "_cell_length_b is '4.594 Å', not a number"),
        ("_cell_length_a", "-4.594", "is none"),
        ("_cell_angle_gamma", "200", "is none"),
        ("_cell_angle_gamma", "0", "is none"),
    ],
)
def test_bad_cells(tag, value, message):
    lines = cif().splitlines()
    lines = [f"{tag} {value}" if line.startswith(tag) else line for line in lines]
    refused("\n".join(lines), message)


def test_volume_of_the_file():
    check(cif(extra="_cell_volume 62.45(3)"), "TiO2", 6)
    check(cif(extra="_cell_volume 6245"), "TiO2", 6, doubt="the file says 6245 Å^3")
    angles = (4.6, 4.6, 3, 90, 90, 90)
    impossible = cif(cell=(*angles[:3], 20, 120, 20), symmetry="_space_group_IT_number 1")
    refused(impossible, "make no cell")


def test_every_block_is_a_row():
    broken = cif(name="y").replace("O1 O 0.305 0.305 0", "O1 O ? ? ?")
    text = "data_global\n_journal_year 2020\n" + cif(name="x") + broken + cif(name="x")
    records = list(parse_text(text, "a.cif"))
    assert [place for _, place, _ in records] == [
        "a.cif, block 1 (data_x)", "a.cif, block 2 (data_y)", "a.cif, block 3 (data_x)"
    ]  # fmt: skip
    kinds = [isinstance(structure, StructureError) for _, _, structure in records]
    assert kinds == [False, True, False]
    assert str(records[1][2]) == "a.cif, block 2 (data_y): O1: _atom_site_fract_x is missing"
    refused("data_global\n_journal_year 2020\n", "no block has a cell or atoms")
    refused("data_x\n_cell_length_a 4\n", "has no _cell_length_b")
    refused(cif().partition("loop_\n_atom")[0], "has no atoms: _atom_site_label is missing")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "a.cif"
    path.write_bytes(cif(extra="_publ_author_name 'Müller'").encode(encoding))
    ((_, _, structure),) = parse(path)
    assert len(structure) == 6


def test_too_many_places_are_refused(monkeypatch):
    monkeypatch.setattr("matattn.structures.formats.cif.MOST_PLACES", 31)
    refused(cif(), "32 places of atoms, more than 31")
