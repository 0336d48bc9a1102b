"""Everything that people call a structure in Python becomes one, or an error in its place."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import IMolecule, IStructure, Lattice, Molecule, Structure
from pymatgen.symmetry.analyzer import SpacegroupOperations
from pymatgen.symmetry.structure import SymmetrizedStructure

from matattn.errors import StructureError
from matattn.structures.inputs import take

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.7), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
CESIUM = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])
WATER = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def atoms(structure, pbc=True):
    """ASE's object, as far as it is read."""
    cell = structure.lattice.matrix if isinstance(structure, Structure) else np.zeros((3, 3))
    numbers = np.array([site.specie.Z for site in structure])
    return SimpleNamespace(
        numbers=numbers, positions=structure.cart_coords, cell=cell, pbc=np.array([pbc] * 3)
    )


@pytest.fixture
def folder(tmp_path):
    SALT.to(filename=str(tmp_path / "a.cif"))
    lines = [f'{{"lattice": {(4 * np.eye(3)).tolist()}, "Z": [3], "frac": [[0, 0, 0]]}}\n'] * 2
    (tmp_path / "b.jsonl").write_text("".join(lines))
    return tmp_path


def formulas(given, places=None):
    taken = [structure for _, structure in take(given, places)]
    return [
        "error" if isinstance(one, StructureError) else one.composition.reduced_formula
        for one in taken
    ]


def same(one, other):
    return np.allclose(one.cart_coords, other.cart_coords) and one.species == other.species


@pytest.mark.parametrize(
    "given",
    [
        SALT,
        IStructure.from_sites(SALT),
        SymmetrizedStructure(SALT, SpacegroupOperations("", 1, []), [0] * 4 + [1] * 4, "a" * 8),
        SALT.as_dict(),
        {"structure": SALT.as_dict()},
        {"lattice": SALT.lattice.matrix.tolist(), "Z": SALT.atomic_numbers,
         "frac": SALT.frac_coords.tolist()},
        atoms(SALT),
        list(SALT),
        np.array(SALT, dtype=object),
    ],
)  # fmt: skip
def test_one_crystal(given):
    for many in (given, [given], (given,), iter([given]), {"name": given}, pd.Series([given])):
        ((_, structure),) = take(many)
        assert isinstance(structure, Structure) and same(structure, SALT)


@pytest.mark.parametrize(
    "given", [WATER, IMolecule.from_sites(WATER), atoms(WATER, pbc=False), list(WATER)]
)
def test_one_molecule(given):
    ((place, structure),) = take(given)
    assert place == "structure 1" and isinstance(structure, Molecule) and same(structure, WATER)


@pytest.mark.parametrize(
    "given",
    [
        [SALT, CESIUM],
        (SALT, CESIUM),
        (one for one in (SALT, CESIUM)),
        np.array([SALT, CESIUM], dtype=object),
        pd.Series([SALT, CESIUM], index=["x", "y"]),
        pd.DataFrame({"id": [1, 2], "structure": [SALT, CESIUM]}),
        {"x": SALT, "y": CESIUM},
    ],
)
def test_many_keep_their_order(given):
    assert formulas(given) == ["NaCl", "CsCl"]


def test_an_array_of_structures_of_one_size():
    assert formulas(np.array([SALT, SALT], dtype=object)) == ["NaCl", "NaCl"]
    assert formulas([]) == formulas({}) == []


def test_files_have_a_row_for_each_structure(folder):
    assert formulas(str(folder / "a.cif")) == ["NaCl"]
    assert formulas(folder / "b.jsonl") == ["Li", "Li"]
    assert formulas(folder) == ["NaCl", "Li", "Li"]
    assert formulas(str(folder / "*.cif")) == ["NaCl"]
    assert formulas([CESIUM, Path(folder / "b.jsonl"), "lost.cif", SALT]) == [
        "CsCl", "Li", "Li", "error", "NaCl",
    ]  # fmt: skip
    (place, _), (line, _) = take(["lost.cif", folder / "b.jsonl"])[:2]
    assert place == "lost.cif" and line.endswith("b.jsonl:1")
    ((place, error),) = take("data_x\n_cell_length_a 3\n")
    assert str(error).startswith("structure 1: a text is taken for the path of a file")
    assert formulas("-") == ["error"]  # not the standard input


def test_places_name_the_elements():
    assert [place for place, _ in take([SALT, CESIUM], ["one", "two"])] == ["one", "two"]
    assert [place for place, _ in take({"one": SALT, 2: CESIUM})] == ["one", "2"]
    with pytest.raises(ValueError, match="zip"):
        take([SALT], ["one", "two"])


@pytest.mark.parametrize(
    "bad, message",
    [
        (None, "structure 2 is None, expected a Structure or Molecule of pymatgen, Atoms of ASE"),
        (float("nan"), "structure 2 is an object of type float, expected"),
        (Structure, "structure 2 is an object of type ABCMeta, expected"),
        ([1.0], "structure 2 is an object of type list, expected"),
        ([SALT, SALT], "structure 2 is an object of type list, expected"),
        (SALT[0], "structure 2 is an object of type PeriodicSite, expected"),
        ({"x": 1}, "structure 2: expected a structure of pymatgen"),
        ({"sites": 3, "lattice": None}, "structure 2: "),
        (StructureError("my own"), "my own"),
        (SimpleNamespace(numbers=1, positions=2, cell=3, pbc=4), "structure 2: "),
        (SimpleNamespace(**vars(atoms(SALT)) | {"pbc": np.array([1, 1, 0])}), "structure 2"),
    ],
)
def test_a_bad_element_is_an_error_in_its_place(bad, message):
    taken = take([SALT, bad, CESIUM])
    assert [isinstance(one, StructureError) for _, one in taken] == [False, True, False]
    assert str(taken[1][1]).startswith(message)


@pytest.mark.parametrize(
    "given, message",
    [
        (None, "got an object of type NoneType, expected a Structure or Molecule"),
        (3, "got an object of type int"),
        (b"a.cif", "got an object of type bytes"),
        (io.StringIO("x"), "got an object of type StringIO"),
        (SALT.composition, "got an object of type Composition"),
        (SALT.lattice, "got an object of type Lattice"),
        (SALT[0], "got an object of type PeriodicSite"),
        (np.array(3.0), "got an object of type ndarray"),
        (pd.DataFrame({"x": [1], "y": [2]}), "the DataFrame has no column 'structure', but x, y"),
    ],
)
def test_what_is_no_structure_is_told(given, message):
    with pytest.raises(TypeError, match=message):
        take(given)


def test_an_error_of_a_generator_is_its_own():
    def broken():
        yield SALT
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        take(broken())
