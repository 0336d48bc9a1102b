"""JSON of pymatgen, JARVIS, ASE, and rows of data; the same rules as of other formats."""

import bz2
import json
import re

import numpy as np
import pytest
from pymatgen.core import Lattice, Molecule, Structure

from matattn.datasets.structure_formats import pymatgen_row
from matattn.errors import StructureError
from matattn.structures.files import entries, read
from matattn.structures.remarks import remarks_of
from matattn.structures.structure import validate

SALT = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.4]])
ROW = {"id": "r1", "lattice": (4 * np.eye(3)).tolist(), "Z": [11, 17],
       "frac": [[0, 0, 0], [0.5, 0.5, 0.4]]}  # fmt: skip
JARVIS = {"lattice_mat": (4 * np.eye(3)).tolist(), "elements": ["Na", "Cl"],
          "coords": [[0, 0, 0], [0.5, 0.5, 0.4]], "cartesian": False, "abc": [4, 4, 4]}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(content, name="a.json"):
        path = tmp_path / name
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def changed(change, structure=SALT):
    content = json.loads(json.dumps(structure.as_dict()))
    change(content)
    return content


def without(*keys):
    def change(content):
        for site in content["sites"]:
            for key in keys:
                del site[key]

    return change


@pytest.mark.parametrize(
    "content",
    [
        SALT.as_dict(), ROW, {"structure": SALT.as_dict(), "energy": 1}, JARVIS,
        {"jid": "JVASP-1", "atoms": JARVIS}, [SALT.as_dict()], {"salt": SALT.as_dict()},
        JARVIS | {"cartesian": True, "coords": [[0, 0, 0], [2, 2, 1.6]]},
        "\ufeff" + json.dumps(SALT.as_dict()), json.dumps(SALT.as_dict()).encode("utf-16"),
        changed(without("abc")), changed(without("xyz")),
        changed(lambda content: content["lattice"].pop("matrix")),
        changed(lambda content: content["lattice"].pop("pbc")),
        ROW | {"pbc": [True, True, True]},
    ],
)  # fmt: skip
def test_one_crystal(written, content):
    (structure,) = read(written(content))
    assert structure.formula == "Na1 Cl1" and remarks_of(structure) == []
    assert structure.lattice.matrix == pytest.approx(4 * np.eye(3))
    assert structure[1].frac_coords == pytest.approx([0.5, 0.5, 0.4])
    assert validate(structure) == []


def test_ids(written):
    content = [{"material_id": "mp-1", "structure": SALT.as_dict()}, {"jid": "J1", "atoms": JARVIS},
               ROW, SALT.as_dict()]  # fmt: skip
    assert [entry.id for entry in entries(written(content))] == ["mp-1", "J1", "r1", "a:4"]
    content = {"x": SALT.as_dict(), "y": {"structure": SALT.as_dict()}, "note": "text"}
    assert [entry.id for entry in entries(written(content))] == ["x", "y"]


def test_molecules(written):
    molecule = Molecule(["H", "H"], [[0, 0, 0], [0, 0, 0.74]])
    contents = [molecule.as_dict(), {"molecule": molecule.as_dict()},
                {"Z": [1, 1], "pos": [[0, 0, 0], [0, 0, 0.74]]}]  # fmt: skip
    for structure in read(written(contents)):
        assert isinstance(structure, Molecule) and structure.formula == "H2"
        assert structure.cart_coords[1].tolist() == [0, 0, 0.74]
    row = pymatgen_row(molecule.as_dict(), "here")
    assert row["Z"] == [1, 1] and row["pos"][1] == [0, 0, 0.74]


def test_database_of_ase(written, tmp_path):
    ase_io = pytest.importorskip("ase.io")
    atoms = SALT.to_ase_atoms()
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    ase_io.write(tmp_path / "a.json", [atoms, slab, atoms])
    first, second, third = entries(tmp_path / "a.json")
    assert first.structure.matches(SALT) and third.structure.matches(SALT)
    assert (first.id, third.id) == ("a:1", "a:3")
    assert "entry 2: is periodic in some directions only (pbc T T F)" in str(second.structure)


MIXED = "is periodic in some directions only (pbc T T F)"


@pytest.mark.parametrize(
    "content, message",
    [
        (changed(lambda c: c["lattice"].update(pbc=[True, True, False])), MIXED),
        (changed(lambda c: c["lattice"].update(pbc=[False] * 3)), "is periodic nowhere"),
        (ROW | {"pbc": [True, True, False]}, MIXED),
        (changed(lambda c: c.pop("sites")), "; has no sites"),
        (changed(without("abc", "xyz")), "site 1: has no 'xyz'"),
        (changed(without("species")), "site 1: has no 'species'"),
        (changed(lambda c: c["sites"][1]["species"][0].pop("occu")), "site 2: has no 'occu'"),
        (changed(lambda c: c["sites"][1]["species"][0].update(element="X")), "site 2: 'X' is not"),
        (changed(lambda c: c["sites"][1]["species"][0].update(occu=0)), "site 2: nothing occupies"),
        (changed(lambda c: c["sites"][1]["species"][0].update(occu=-1)), "Cl has the occupancy -1"),
        (changed(lambda c: c.update(lattice={"a": 4, "b": 4})), "no matrix, and no c, alpha"),
        (changed(lambda c: c["lattice"].update(matrix=[[1, 0, 0]])), "has the shape (1, 3)"),
        (changed(lambda c: c["lattice"].update(matrix=[[1, 0, 0]] * 3)), "the cell has no volume"),
        ({"lattice": ROW["lattice"], "Z": [1]}, "has no frac"),
        (ROW | {"lattice": None}, "the lattice"),
        (ROW | {"Z": [0, 17]}, "a.json: "),
        ({"lattice": ROW["lattice"], "Z": [1], "pos": [[0, 0, 0]]}, "has pos and a lattice"),
        (JARVIS | {"elements": ["Na", "OH"]}, "atom 2: 'OH' is not a chemical element"),
        (JARVIS | {"elements": ["Na"]}, "has 1 elements and 2 positions"),
        ([3], "got int"),
        ({"structure": 3}, "got int"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(written, content, message):
    path = written(content)
    with pytest.raises(StructureError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def partial(*kinds):
    return changed(lambda content: content["sites"][1].update(species=list(kinds)))


def kind(element, occupancy, **more):
    return {"element": element, "occu": occupancy, **more}


@pytest.mark.parametrize(
    "content, remark",
    [
        (partial(kind("Cl", 0.9999)), "occupancies taken as 1: site 2 (0.9999)"),
        (partial(kind("Cl", 0.999)), "occupancies taken as 1: site 2 (0.999)"),
        (partial(kind("Cl", 0.5), kind("Cl", 0.5, oxidation_state=-1)), None),
        (partial(kind("Cl", 1), kind("Br", 0)), None),
        (partial(kind("D", 1)), "labels taken for elements: D as H"),
    ],
)
def test_whole_sites(written, content, remark):
    (structure,) = read(written(content))
    assert remarks_of(structure) == ([remark] if remark else [])
    assert validate(structure) == []
    row = pymatgen_row(content, "here")
    assert row["Z"] == [site.specie.Z for site in structure]


@pytest.mark.parametrize("content", [partial(kind("Cl", 0.99)), partial(kind("Cl", 0.5)),
                                     partial(kind("Cl", 0.9999), kind("Br", 0.0001))])  # fmt: skip
def test_partial_sites_stay_partial(written, content):
    (structure,) = read(written(content))
    with pytest.raises(StructureError, match=r"site 2 .* partial occupancy"):
        validate(structure)
    with pytest.raises(StructureError, match="here: site 2 has partial occupancy"):
        pymatgen_row(content, "here")


def test_compressed_json_lines(written):
    lines = "\n".join(json.dumps(ROW | {"id": n}) for n in range(3))
    path = written(bz2.compress(lines.encode("utf-8-sig")), "rows.jsonl.bz2")
    assert [entry.id for entry in entries(path)] == ["0", "1", "2"]


OPTIMADE = {
    "lattice_vectors": (4 * np.eye(3)).tolist(),
    "cartesian_site_positions": [[0, 0, 0], [2, 2, 1.6]],
    "species_at_sites": ["Na", "chloride"],
    "species": [
        {"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0]},
        {"name": "chloride", "chemical_symbols": ["Cl"], "concentration": [1]},
    ],
    "dimension_types": [1, 1, 1],
}


@pytest.mark.parametrize(
    "content",
    [OPTIMADE, {"attributes": OPTIMADE}, {"data": [{"id": "x", "attributes": OPTIMADE}]},
     {"data": [{"structure": SALT.as_dict()}], "meta": {}}],
)  # fmt: skip
def test_answers_of_web_services(written, content):
    (structure,) = read(written(content))
    assert np.allclose(structure.distance_matrix, SALT.distance_matrix)
    assert structure.species == SALT.species


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension_types": [1, 1, 0]}, MIXED),
        ({"species": [OPTIMADE["species"][0] | {"concentration": [0.5]}]},
         "site 1 (Na) has partial occupancy"),
        ({"species_at_sites": ["Na", "vacancy"]}, "'vacancy' is not a chemical element"),
        ({"species_at_sites": ["Na"]}, "has 1 elements and 2 positions"),
    ],
)  # fmt: skip
def test_optimade_that_is_refused(written, change, message):
    with pytest.raises(StructureError, match=re.escape(message)):
        read(written(OPTIMADE | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"lattice": 1} {"lattice": 2}', "one structure per line: call it .jsonl"),
        ('{"lattice": ', "is not JSON, or cut"),
        ("data_x", "is not JSON, or cut"),
    ],
)
def test_texts_that_are_no_json(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StructureError, match=message):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(sites=None), "has no sites"),
        (lambda d: d["sites"].__setitem__(0, None), "site 1: expected species, a list"),
        (lambda d: d["sites"][1].update(species=None), "site 2: expected species, a list"),
        (lambda d: d["sites"][0].update(species="Na"), "site 1: expected species, a list"),
        (lambda d: d["sites"][0].update(abc=[0, 0]), "site 1: abc has 2 numbers; expected 3"),
        (lambda d: d["sites"][0].update(abc=None), "site 1: expected species, a list"),
        (lambda d: d["sites"][0]["species"][0].update(occu="x"), "occupancy is 'x', not a number"),
        (lambda d: d["lattice"].update(a=8), "lengths and angles are 8 4 4 90 90 90: they contrad"),
        (lambda d: d["lattice"].update(gamma="x"), "gamma is 'x', not a number"),
    ],
)
def test_structures_that_contradict_themselves_or_are_none(written, change, message):
    content = json.loads(SALT.to_json())
    change(content)
    with pytest.raises(StructureError, match=message):
        read(written(content))


@pytest.mark.parametrize("z", [True, "Na", 0, -11, 11.5, None])
def test_rows_with_a_bad_atomic_number(written, z):
    with pytest.raises(StructureError, match="atom 1: .*atomic number"):
        read(written(ROW | {"Z": [z, 17]}))
