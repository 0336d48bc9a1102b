"""Orderings of crystals with partial occupancies."""

from collections import Counter

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from matattn.errors import StructureError
from matattn.structures import disorder
from matattn.structures.disorder import MOST_SITES, orderings, read_disordered

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def alloy(share, sites=1):
    species = [{"Cu": share, "Au": 1 - share}] * sites
    return Structure(Lattice.cubic(3.85), species, FCC[:sites])


def keys(made):
    return [tuple(site.species_string for site in one) for one in made.structures]


def test_a_random_alloy_in_a_cell_without_short_vectors():
    made = orderings(alloy(0.5), 20)
    assert len(made.structures) == 20 == len(set(keys(made))) and not made.are_all
    assert {one.composition.reduced_formula for one in made.structures} == {"CuAu"}
    assert min(made.structures[0].lattice.abc) > 3 * 3.8 and "3x3x4" in made.remark
    assert "occupancies within" not in made.remark
    assert "occupancies within 0.0037" in orderings(alloy(0.7), 20).remark  # 19 of 27
    even = orderings(alloy(0.5, 4), 20)
    assert {one.composition.reduced_formula for one in even.structures} <= {"CuAu", "Cu13Au14"}
    assert max(map(len, even.structures)) <= MOST_SITES


def test_all_placements_are_given_once_where_they_are_few():
    """Two of four sites: six placements; and a site that is a whole atom stays one."""
    few = Structure(
        Lattice.cubic(9.0), [{"Cu": 0.5, "Au": 0.5}] * 4 + ["O"] * 30,
        [*FCC, *np.random.default_rng(0).random((30, 3))],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disorder, "_OVERLAP", 0.0)
        made = orderings(few, 6)
        assert made.are_all and len(set(keys(made))) == 6
        assert not orderings(few, 5).are_all
    assert all(Counter(key[:4]) == {"Cu": 2, "Au": 2} for key in keys(made))
    assert all(key[4:] == ("O",) * 30 for key in keys(made))


def test_the_same_seed_gives_the_same():
    one, two, other = (keys(orderings(alloy(0.5), 5, seed)) for seed in (1, 1, 2))
    assert one == two != other


def test_vacancies_are_left_out():
    species = [{"Fe": 0.9}, "O"]
    rock_salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.3), species, [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    made = orderings(rock_salt, 8)
    for one in made.structures:
        counts = one.composition.get_el_amt_dict()
        assert counts["Fe"] / counts["O"] == pytest.approx(0.9, abs=0.05)
        assert len(one) == counts["Fe"] + counts["O"]
    assert min(made.structures[0].lattice.abc) > 5  # more than one cell in every direction


def test_a_whole_crystal_is_its_only_ordering():
    whole = Structure(Lattice.cubic(3.85), ["Cu"], [[0, 0, 0]])
    made = orderings(whole, 10)
    assert made.are_all and len(made.structures) == 1
    assert made.structures[0].composition.reduced_formula == "Cu"
    assert made.structures[0].lattice.volume / len(made.structures[0]) == pytest.approx(3.85**3)


def test_alternatives_exclude_each_other():
    """An atom on one of two places 0.6 Å apart is never on both."""
    split = Structure(
        Lattice.cubic(5.0), [{"H": 0.5}, {"H": 0.5}, "O"],
        [[0.1, 0, 0], [0.22, 0, 0], [0.5, 0.5, 0.5]],
    )  # fmt: skip
    made = orderings(split, 4)
    assert made.structures
    for one in made.structures:
        assert one.distance_matrix[np.triu_indices(len(one), 1)].min() > 0.8


@pytest.mark.parametrize("share", [0.999, 0.001])
def test_an_element_is_never_lost(share):
    with pytest.raises(StructureError, match="no cell of at most 48 sites holds all its elements"):
        orderings(alloy(share), 5)


def test_overlaps_everywhere_are_told():
    crowded = Structure(
        Lattice.cubic(3.0), [{"H": 0.9}, {"H": 0.9}], [[0.1, 0, 0], [0.2, 0, 0]]
    )  # fmt: skip
    with pytest.raises(StructureError, match="atoms overlap in all orderings"):
        orderings(crowded, 2)


def test_only_files_of_disordered_crystals_are_read(tmp_path):
    for name, structure in (("mixed", alloy(0.5, 4)), ("whole", alloy(1.0, 4))):
        CifWriter(structure).write_file(tmp_path / f"{name}.cif")
    mixed = read_disordered(tmp_path / "mixed.cif")
    assert mixed.composition.get_el_amt_dict() == {"Cu": 2, "Au": 2}
    text = (tmp_path / "mixed.cif").read_text()
    assert "'Cu2 Au2'" in text
    for name, content, told in (
        ("formula", text.replace("'Cu2 Au2'", "'Cu3 Au'"), "its formula is Cu3 Au"),
        ("broken", "data_x\n_cell_length_a 3\n", "pymatgen cannot read"),
        ("two", text + text.replace("data_", "data_b"), "pymatgen cannot read"),
        ("zero", text.replace("'x, y, z'", "'x+1/0, y, z'"), "pymatgen cannot read"),
        ("large", text + "#" * 5_000_000, "more than 5 MB"),
        ("whole", None, "finds no partial occupancies"),
    ):
        if content is not None:
            (tmp_path / f"{name}.cif").write_text(content)
        with pytest.raises(StructureError, match=told):
            read_disordered(tmp_path / f"{name}.cif")


def test_distortions_stay():
    """Chlorine that is dimerised by 0.1 Å is so in every ordering."""
    doubled = Structure(
        Lattice.orthorhombic(8.0, 4.0, 4.0), [{"Na": 0.5, "K": 0.5}] * 2 + ["Cl"] * 2,
        [[0, 0, 0], [0.5, 0, 0], [0.25 + 0.1 / 8, 0.5, 0.5], [0.75 - 0.1 / 8, 0.5, 0.5]],
    )  # fmt: skip
    for one in orderings(doubled, 4).structures:
        chlorine = one.cart_coords[[site.species_string == "Cl" for site in one]]
        assert set(np.round(chlorine[:, 0] % 8 % 8, 3)) == {2.1, 5.9}


def test_a_thousand_whole_sites_are_no_problem():
    assert list(disorder._arrangements(Counter({"O": 1100}))) == [["O"] * 1100]
    orders = list(disorder._arrangements(Counter({"O": 300, "": 1, "N": 1})))
    assert len(orders) == 302 * 301 == len({tuple(order) for order in orders})
