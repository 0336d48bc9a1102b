"""One crystal in many formats, and what their readers must not assume."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.xcrysden import XSF

from matattn.errors import StructureError
from matattn.structures.files import entries, is_structure_file, read
from matattn.structures.remarks import doubts_of, remarks_of

CRYSTAL = Structure(
    Lattice([[4.594, 0, 0], [0.3, 4.7, 0], [0.2, -0.4, 2.959]]),
    ["Ti", "Ti", "O", "O", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.305, 0.305, 0], [0.195, 0.805, 0.5], [0.805, 0.195, 0.5],
     [0.695, 0.695, 0.01]],
)  # fmt: skip
PSEUDO = {"Ti": "Ti.upf", "O": "O.upf"}


def same(structure, tolerance=1e-6):
    assert structure.species == CRYSTAL.species
    assert np.abs(structure.distance_matrix - CRYSTAL.distance_matrix).max() < tolerance
    assert structure.lattice.volume == pytest.approx(CRYSTAL.lattice.volume, rel=tolerance)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.vasp", {"direct": True}),
        ("a.vasp", {"direct": False}),
        ("a.extxyz", {}),
        ("a.json", {}),
        ("a.traj", {}),
        ("a.db", {}),
        ("a.xsf", {}),
        ("a.cube", {}),
        ("geometry.in", {"format": "aims"}),
        ("geometry.in", {"format": "aims", "scaled": True}),
        ("a.pwi", {"format": "espresso-in", "pseudopotentials": PSEUDO}),
        ("scf.in", {"format": "espresso-in", "pseudopotentials": PSEUDO,
                    "crystal_coordinates": True}),
        ("a.lmp", {"format": "lammps-data", "masses": True, "specorder": ["O", "Ti"]}),
        ("data.x", {"format": "lammps-data", "masses": True, "atom_style": "charge"}),
        ("a.data", {"format": "lammps-data", "masses": True, "atom_style": "full"}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_one_crystal_in_many_formats(tmp_path, name, options):
    ase_io = pytest.importorskip("ase.io")
    path = tmp_path / name
    ase_io.write(path, CRYSTAL.to_ase_atoms(), **options)
    assert is_structure_file(path)
    (structure,) = read(path)
    same(structure)


def test_formats_of_pymatgen(tmp_path):
    CRYSTAL.to(filename=str(tmp_path / "a.cssr"))
    same(read(tmp_path / "a.cssr")[0], 1e-3)  # it writes four digits
    (tmp_path / "a.xsf").write_text(XSF(CRYSTAL).to_str())
    same(read(tmp_path / "a.xsf")[0])


def vectors(rows, mark="v"):
    return "\n".join(f"   <{mark}> {x:.8f} {y:.8f} {z:.8f} </{mark}>" for x, y, z in rows)


def vasprun(shifts, end="</modeling>\n"):
    """Return the parts of a vasprun.xml that are read, with one step per shift."""

    def structure(shift):
        return (
            ' <structure>\n  <crystal>\n   <varray name="basis" >\n'
            f"{vectors(CRYSTAL.lattice.matrix)}\n   </varray>\n"
            f'   <varray name="rec_basis" >\n{vectors(np.eye(3))}\n   </varray>\n  </crystal>\n'
            f'  <varray name="positions" >\n{vectors(CRYSTAL.frac_coords + shift)}\n  </varray>\n'
            " </structure>\n"
        )

    rows = "".join(f"<rc><c>{site.specie:2}</c><c>   1</c></rc>\n" for site in CRYSTAL)
    atoms = f'<atominfo>\n<array name="atoms" >\n<set>\n{rows}</set>\n</array>\n</atominfo>\n'
    steps = "".join(
        f'<calculation>\n{structure(shift)}<varray name="forces" >\n'
        f"{vectors(CRYSTAL.frac_coords)}\n</varray>\n</calculation>\n"
        for shift in shifts
    )
    return f'<?xml version="1.0"?>\n<modeling>\n{atoms}{structure(0.3)}{steps}{end}'


def test_the_last_structure_of_vasprun(tmp_path):
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun([0.2, 0.1, 0.05]))
    (structure,) = read(path)
    same(structure)
    assert structure[0].frac_coords == pytest.approx([0.05] * 3)
    assert remarks_of(structure) == ["the last of 3 ionic steps"]
    path.write_text(vasprun([0.2, 0.1], '<calculation>\n<structure>\n<varray name="basis">\n'))
    (structure,) = read(path)
    assert structure[0].frac_coords == pytest.approx([0.1] * 3)
    assert "the file ends early: the run was stopped, or goes on" in remarks_of(structure)
    path.write_text(vasprun([0.1]).replace("<c>O ", "<c>X "))
    with pytest.raises(StructureError, match="atom 3: 'X' is not a chemical element"):
        read(path)


def test_entities_of_xml_do_nothing(tmp_path):
    lines = ['<!ENTITY a0 "x">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 20))]
    path = tmp_path / "vasprun.xml"
    path.write_text(f"<?xml version='1.0'?><!DOCTYPE m [{''.join(lines)}]>\n<m>&a19;</m>")
    with pytest.raises(StructureError, match="names 0 atoms, and has 0 positions"):
        read(path)


BOHR = 0.529177210544
PWO = """
     Program PWSCF v.7.2 starts on  1Jan2024 at  0:00:00

     bravais-lattice index     =            0
     lattice parameter (alat)  =       {a:.4f}  a.u.
     number of atoms/cell      =            2
     number of atomic types    =            2
     celldm(1)=   {a:.8f}  celldm(2)=   0.000000  celldm(3)=   0.000000

     crystal axes: (cart. coord. in units of alat)
               a(1) = (   1.000000   0.000000   0.000000 )
               a(2) = (   0.000000   1.000000   0.000000 )
               a(3) = (   0.000000   0.000000   1.000000 )

     atomic species   valence    mass     pseudopotential
        {first}            1.00   132.90500     Cs( 1.00)
        Cl             7.00    35.45300     Cl( 1.00)

     site n.     atom                  positions (alat units)
         1           {first}  tau(   1) = (   0.0000000   0.0000000   0.0000000  )
         2           Cl  tau(   2) = (   0.5000000   0.5000000   0.3000000  )

!    total energy              =     -60.00000000 Ry

ATOMIC_POSITIONS (crystal)
{first}       0.0000000000        0.0000000000        0.0000000000
Cl       0.5000000000        0.5000000000        0.4000000000


!    total energy              =     -60.10000000 Ry
"""


def test_output_of_quantum_espresso(tmp_path):
    pytest.importorskip("ase")
    path = tmp_path / "relax.out"
    path.write_text(PWO.format(a=4.2 / BOHR, first="Cs"))
    (structure,) = read(path)
    assert structure.formula == "Cs1 Cl1" and remarks_of(structure) == ["the last of 2 steps"]
    assert structure.lattice.abc == pytest.approx([4.2] * 3, abs=1e-6)
    assert structure.cart_coords[1] == pytest.approx([2.1, 2.1, 1.68], abs=1e-6)
    path.write_text(PWO.format(a=4.2 / BOHR, first="Xx"))
    with pytest.raises(StructureError, match="'Xx' is not a chemical element"):
        read(path)


PWI = """&control
/
&system
 ibrav=0, nat=2, ntyp=2{celldm}
/
&electrons
/
ATOMIC_SPECIES
 {label} 132.905 Cs.upf
 Cl 35.45 Cl.upf
CELL_PARAMETERS {{{cell}}}
{rows}
ATOMIC_POSITIONS {{{unit}}}
 {label} 0 0 0
 Cl {x} {x} {z}
K_POINTS gamma
"""


@pytest.mark.parametrize(
    "cell, edge, unit, x, z",
    [("bohr", 4.2 / BOHR, "bohr", 2.1 / BOHR, 1.68 / BOHR), ("alat", 1, "alat", 0.5, 0.4),
     ("angstrom", 4.2, "crystal", 0.5, 0.4), ("angstrom", 4.2, "angstrom", 2.1, 1.68)],
)  # fmt: skip
def test_units_of_quantum_espresso(tmp_path, cell, edge, unit, x, z):
    pytest.importorskip("ase")
    rows = "\n".join(" ".join(map(str, row)) for row in edge * np.eye(3))
    path = tmp_path / "a.pwi"
    options = {"cell": cell, "rows": rows, "unit": unit, "x": x, "z": z,
               "celldm": f", celldm(1)={4.2 / BOHR}" if cell == "alat" else ""}  # fmt: skip
    path.write_text(PWI.format(label="Cs1", **options))
    (structure,) = read(path)
    assert structure.formula == "Cs1 Cl1"
    assert structure.lattice.abc == pytest.approx([4.2] * 3, abs=1e-6)
    assert structure.cart_coords[1] == pytest.approx([2.1, 2.1, 1.68], abs=1e-6)
    assert remarks_of(structure) == ["labels taken for elements: Cs1 as Cs"]
    path.write_text(PWI.format(label="OH", **options))
    with pytest.raises(StructureError, match="'OH' is not a chemical element"):
        read(path)


AIMS = """
          Invoking FHI-aims ...
  Input geometry:
  | Unit cell:
  |        4.20000000        0.00000000        0.00000000
  |        0.00000000        4.20000000        0.00000000
  |        0.00000000        0.00000000        4.20000000
  | Atomic structure:
  |       Atom                x [A]            y [A]            z [A]
  |    1: Species Cs            0.00000000        0.00000000        0.00000000
  |    2: Species Cl            2.10000000        2.10000000        1.00000000

  Updated atomic structure:
                         x [A]             y [A]             z [A]
            atom         0.00000000        0.00000000        0.00000000  Cs
            atom         2.10000000        2.10000000        1.68000000  Cl
  Fractional coordinates:
                         L1                L2                L3
       atom_frac         0.00000000        0.00000000        0.00000000  Cs
       atom_frac         0.90000000        0.90000000        0.90000000  Cl
------------------------------------------------------------
"""


def test_output_of_fhi_aims(tmp_path):
    path = tmp_path / "aims.out"
    path.write_text(AIMS)
    (structure,) = read(path)
    assert structure.formula == "Cs1 Cl1" and structure.lattice.abc == (4.2, 4.2, 4.2)
    assert structure.cart_coords[1] == pytest.approx([2.1, 2.1, 1.68])
    assert remarks_of(structure) == ["the last of 2 geometries"]
    path.write_text(AIMS[: AIMS.rindex("            atom  ")])
    with pytest.raises(StructureError, match="the last geometry has 1 atoms, the first 2"):
        read(path)
    path.write_text(AIMS.replace("Input geometry", "input"))
    with pytest.raises(StructureError, match="holds no input geometry"):
        read(path)


LAMMPS = """LAMMPS data file via write_data, version 2 Aug 2023{units}

2 atoms
2 atom types

1.0 5.2 xlo xhi
0.0 4.2 ylo yhi
0.0 4.2 zlo zhi
{masses}
Atoms{style}

1 1 1.0 0.0 0.0 0 0 0
2 2 3.1 2.1 1.68 0 0 0
"""
MASSES = "\nMasses\n\n1 {first}\n2 35.453\n"


CESIUM = MASSES.format(first="132.905")


def lammps(units="", masses=CESIUM, style=" # atomic"):
    return LAMMPS.format(units=units, masses=masses, style=style)


@pytest.mark.parametrize("style", ["", " # atomic"])
@pytest.mark.parametrize("first", ["132.905", "133 # Cs"])
def test_lammps_data(tmp_path, style, first):
    path = tmp_path / "a.lmp"
    path.write_text(lammps(masses=MASSES.format(first=first), style=style))
    (structure,) = read(path)
    assert structure.formula == "Cs1 Cl1"
    assert structure.cart_coords[1] == pytest.approx([2.1, 2.1, 1.68])
    assert remarks_of(structure) == ["LAMMPS data: taken as periodic, with lengths in Å"]


@pytest.mark.parametrize(
    "text, message",
    [
        (lammps(masses=""), "tells no elements; write Masses"),
        (lammps(masses=MASSES.format(first="1.0")), "type 1 has the mass 1, .* that of no element"),
        (lammps(masses=MASSES.format(first="133.4")), "type 1 has the mass 133.4"),
        (lammps(units=", units = lj"), "has the units lj; expected metal or real"),
        (lammps(style=" # hybrid"), "atoms of the style hybrid"),
        (lammps().replace("2 atoms", "3 atoms"), "declares 3 atoms, and has 2"),
        (lammps().replace("2 2 3.1", "2 3 3.1"), "atoms have the type 3, which has no mass"),
        (lammps().replace("1 1 1.0", "1 1 1 1.0"), "atom 1: expected 5 or 8 columns"),
        (lammps().replace("zlo zhi", "z"), "has no xlo xhi"),
    ],
)
def test_lammps_data_that_cannot_be_known(tmp_path, text, message):
    path = tmp_path / "a.lmp"
    path.write_text(text)
    with pytest.raises(StructureError, match=message):
        read(path)


XSF_TEXT = "CRYSTAL\nPRIMVEC\n4 0 0\n0 4 0\n0 0 4\nPRIMCOORD\n2 1\n{a} 0 0 0\n17 2 2 2\n"
CUBE = ("title\nmore\n 2 0.0 0.0 0.0\n {n} 1.0 0.0 0.0\n {n} 0.0 1.0 0.0\n {n} 0.0 0.0 1.0\n"
        " {z} 0.0 0.0 0.0 0.0\n 17 0.0 2.0 2.0 2.0\n 0.1 0.2\n")  # fmt: skip


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.xsf", XSF_TEXT.format(a="11").replace("CRYSTAL", "SLAB"), "in some directions only"),
        ("a.xsf", XSF_TEXT.format(a="0"), "atom 1: 0 is no atomic number"),
        ("a.xsf", XSF_TEXT.format(a="X"), "atom 1: 'X' is not a chemical element"),
        ("a.xsf", XSF_TEXT.format(a="11")[:-9], "declares 2 atoms, and has 1"),
        ("a.xsf", XSF_TEXT.format(a="11").replace("CRYSTAL\n", ""), "does not say CRYSTAL"),
        ("a.xsf", XSF_TEXT.format(a="11").replace("2 1", "1 1"), "declares 1 atoms, and has more"),
        ("a.xsf", XSF_TEXT.format(a="11 11"), "atom 1: expected element and three coordinates"),
        ("geometry.in", "atom 0 0 0 Na\n1 1 1 Cl\n", "expected a keyword in place of '1 1 1 Cl'"),
        ("geometry.in", "lattice_vector 4 0 0 0\n", "lattice_vector: expected three numbers"),
        ("a.cube", CUBE.format(n=4, z=0), "atom 1: 0 is no atomic number"),
        ("a.cube", CUBE.format(n=4, z=11)[:100], "declares 2 atoms, and has fewer lines"),
        ("geometry.in", "lattice_vector 4 0 0\natom 0 0 0 Na\n", "has 1 lattice vectors"),
        ("geometry.in", "atom_frac 0 0 0 Na\n", "has atom_frac, and no lattice_vector"),
        ("geometry.in", "atom 0 0 0 OH\n", "atom 1: 'OH' is not a chemical element"),
        ("a.cssr", "4 4 4\n90 90 90 SPGR = 225 F M\n1 0\n\n1 Na 0 0 0\n", "space group 225"),
        ("a.cssr", "4 4 4\n90 90 90\n1 1\n\n1 Na 0 0 0\n", "has Cartesian coordinates"),
    ],
)
def test_what_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(StructureError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))


def test_cube_files_are_in_bohr_and_may_be_molecules(tmp_path):
    path = tmp_path / "a.cube"
    path.write_text(CUBE.format(n=4, z=11))
    (structure,) = read(path)
    assert structure.lattice.abc == pytest.approx([4 * BOHR] * 3)
    assert structure.cart_coords[1] == pytest.approx([2 * BOHR] * 3)
    assert "does not tell whether it is periodic" in doubts_of(structure)[0]
    path.write_text(CUBE.format(n=-4, z=11))
    (structure,) = read(path)
    assert structure.lattice.abc == pytest.approx([4.0] * 3)


def test_frames_of_xsf(tmp_path):
    path = tmp_path / "a.axsf"
    frame = "PRIMCOORD {n}\n1 1\nNa 0 0 {z}\n"
    head = "ANIMSTEPS 2\nCRYSTAL\nPRIMVEC\n4 0 0\n0 4 0\n0 0 4\n"
    path.write_text(head + frame.format(n=1, z=0) + frame.format(n=2, z=1.5))
    (structure,) = read(path)
    assert structure.cart_coords[0].tolist() == [0, 0, 1.5]
    assert remarks_of(structure) == ["the last of 2 steps"]
    (tmp_path / "m.xsf").write_text("ATOMS\nH 0 0 0\nH 0 0 0.74 0 0 0.1\n")
    assert read(tmp_path / "m.xsf")[0].formula == "H2"


def test_other_files_of_these_endings_are_no_structures(tmp_path):
    for name, text in [("slurm.out", "done"), ("in.in", "units metal\n"), ("a.log", "x"),
                       ("a.data", "1 2 3"), ("data.old", "\0\1")]:  # fmt: skip
        (tmp_path / name).write_text(text)
        assert not is_structure_file(tmp_path / name)
        (entry,) = entries(tmp_path / name)
        assert "unknown file type" in str(entry.structure)


def test_cells_and_positions_of_espresso_that_ase_cannot_read(tmp_path):
    text = (
        "&system\n ibrav={}, nat={}, ntyp=1\n/\nATOMIC_SPECIES\nNa 22.99 x.upf\n"
        "CELL_PARAMETERS angstrom\n4 0 0\n0 4 0\n0 0 4\n"
        "ATOMIC_POSITIONS crystal\nNa 0 0 0\nK_POINTS gamma\n"
    )
    path = tmp_path / "x.pwi"
    path.write_text(text.format(0, 1))
    assert len(read(path)[0]) == 1
    path.write_text(text.format(0, 1).replace(", ntyp=1", ""))
    with pytest.raises(StructureError, match="Quantum ESPRESSO: has no ntyp"):
        read(path)
    path.write_text(text.format(6, 1))
    with pytest.raises(StructureError, match="has ibrav = 6; write ibrav = 0 and CELL_PARAMETERS"):
        read(path)
    path.write_text(text.format(0, 2))
    with pytest.raises(StructureError, match="expected three decimal numbers in a line, and lines"):
        read(path)
