import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.structures import vacuum
from matattn.structures.vacuum import doubts, empty_layer, empty_sphere, normal_space


def geometry(structure):
    z = np.array([site.specie.Z for site in structure])
    return z, structure.cart_coords, structure.lattice.matrix


def platinum_slab(gap=20.0):
    """Four layers (111); ``gap`` Å between the outer planes of atoms."""
    a = 3.92 / 2**0.5
    height = 3.92 / 3**0.5
    cell = [[a, 0, 0], [a / 2, a * 3**0.5 / 2, 0], [0, 0, 3 * height + gap]]
    shifts = [np.array([n / 3, n / 3, 0]) @ cell + [0, 0, 5 + n * height] for n in range(4)]
    return Structure(cell, ["Pt"] * 4, shifts, coords_are_cartesian=True)


def graphene(box=15.0):
    return Structure(
        Lattice.hexagonal(2.46, box), ["C", "C"], [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]
    )


def water(box=15.0):
    pos = np.array([[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
    return Structure(Lattice.cubic(box), ["O", "H", "H"], pos, coords_are_cartesian=True)


def molybdenite():
    frac = [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
    frac += [[1 / 3, 2 / 3, z] for z in (0.621 + 0.0, 0.879)]
    frac += [[2 / 3, 1 / 3, z] for z in (0.121, 0.379)]
    return Structure(Lattice.hexagonal(3.16, 12.3), ["Mo", "Mo", *["S"] * 4], frac)


def hollow(side):
    """Atoms of silicon on the faces of a cube, 2.5 Å or less apart: a cage without a layer."""
    count = int(np.ceil(side / 2.5))
    ticks = np.arange(count) / count
    frac = [(x, y, z) for x in ticks for y in ticks for z in ticks if 0 in (x, y, z)]
    return Structure(Lattice.cubic(side), ["Si"] * len(frac), frac)


def chain(box=16.0):
    return Structure(Lattice.tetragonal(box, 2.5), ["Te"], [[0.5, 0.5, 0]])


BULK = {
    "fcc": Structure(Lattice.cubic(3.92), ["Pt"] * 4,
                     [[0, 0, 0], [0, .5, .5], [.5, 0, .5], [.5, .5, 0]]),
    "diamond": Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.57), ["C"], [[0, 0, 0]]),
    "layers": molybdenite(),
    "ionic": Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.12), ["Cs", "Cl"],
                                       [[0, 0, 0], [.5, .5, .5]]),
    "graphite": Structure(Lattice.hexagonal(2.46, 6.71), ["C"] * 4,
                          [[0, 0, .25], [0, 0, .75], [1 / 3, 2 / 3, .25], [2 / 3, 1 / 3, .75]]),
    "narrow cage": hollow(10.0),
}  # fmt: skip
EMPTY = {
    "slab": platinum_slab(), "layer": graphene(), "molecule": water(), "chain": chain(),
    "cage": hollow(15.0),
}  # fmt: skip


@pytest.mark.parametrize("name", BULK)
def test_bulk_crystals_have_no_vacuum(name):
    assert empty_layer(*geometry(BULK[name])) == 0
    assert doubts(geometry(BULK[name]), {}) == []


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_no_bulk_crystal_is_doubted(name):
    (told,) = doubts(geometry(EMPTY[name]), {})
    assert "Å" in told


def test_layers_are_as_thick_as_they_were_built():
    assert empty_layer(*geometry(platinum_slab(20.0))) == pytest.approx(20 - 2 * 1.36)
    assert empty_layer(*geometry(graphene(15.0))) == pytest.approx(15 - 2 * 0.73)
    # The oxygen's surface is 0.66 Å above, and the hydrogens' 0.31 Å below; the molecule is flat.
    assert empty_layer(*geometry(water(15.0))) == pytest.approx(15 - 2 * 0.66)
    # Chains stand in a square; the widest layer is along its sides.
    assert empty_layer(*geometry(chain(16.0))) == pytest.approx(16 - 2 * 1.38)


def test_a_layer_along_a_diagonal_of_the_cell_is_found():
    body_centred = Structure(Lattice.cubic(20.0), ["Xe"] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert empty_layer(*geometry(body_centred)) == pytest.approx(20 / 2**0.5 - 2 * 1.40)


def test_spheres_are_as_wide_as_they_were_built():
    assert empty_sphere(*geometry(hollow(15.0))) == pytest.approx(15 - 2 * 1.11, abs=0.05)
    assert empty_sphere(*geometry(hollow(10.0))) == 0
    assert empty_sphere(*geometry(hollow(20.0))) == vacuum.WIDEST
    assert doubts(geometry(hollow(20.0)), {})[0].startswith("an empty sphere of 14.0 Å or more:")


def shifted(structure):
    moved = structure.copy()
    moved.translate_sites(range(len(moved)), [0.31, 0.77, 0.49])
    return moved


def rotated(structure):
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return Structure(structure.lattice.matrix @ axes, structure.species, structure.frac_coords)


def sheared(structure):
    other = [[1, 0, 0], [2, 1, 0], [-1, 3, 1]]
    cell = np.array(other) @ structure.lattice.matrix
    return Structure(cell, structure.species, structure.cart_coords, coords_are_cartesian=True)


def repeated(structure):
    return structure.copy() * [[2, 1, 0], [0, 1, 0], [1, 0, 2]]


@pytest.mark.parametrize("change", [shifted, rotated, sheared, repeated])
@pytest.mark.parametrize("name", [*BULK, *EMPTY])
def test_the_choice_of_the_cell_does_not_matter(name, change, monkeypatch):
    monkeypatch.setattr(vacuum, "NARROWEST", 3.0)
    structure = (BULK | EMPTY)[name]
    before, after = geometry(structure), geometry(change(structure))
    assert empty_layer(*after) == pytest.approx(empty_layer(*before), abs=1e-6)
    assert empty_sphere(*after) == pytest.approx(empty_sphere(*before), abs=2 * vacuum.EXACT)


def test_random_cells_agree_with_a_fine_grid(monkeypatch):
    monkeypatch.setattr(vacuum, "NARROWEST", 1.0)
    random = np.random.default_rng(1)
    for _ in range(5):
        cell = 7 * np.eye(3) + random.normal(size=(3, 3))
        structure = Structure(cell, ["Si", "O", "Cs"], random.random((3, 3)))
        grid = np.stack(np.meshgrid(*[np.arange(28) / 28] * 3), -1).reshape(-1, 3)
        distance = structure.lattice.get_all_distances(grid, structure.frac_coords)
        widest = 2 * (distance - [1.11, 0.66, 2.44]).min(1).max()
        assert widest - 0.01 <= empty_sphere(*geometry(structure)) <= widest + 0.4


def test_a_model_of_slabs_does_not_complain():
    slabs = [geometry(platinum_slab(20.0)) for _ in range(9)]
    normal = normal_space(slabs)
    assert normal["layer"] == pytest.approx(20 - 2 * 1.36)
    assert normal["sphere"] == vacuum.WIDEST
    assert doubts(slabs[0], normal) == []
    (told,) = doubts(geometry(platinum_slab(25.0)), normal)
    assert told.endswith("few of the crystals that this model was trained on have more than 17.3 Å")
    assert normal_space([geometry(BULK["fcc"])]) == {"layer": 0, "sphere": 0}


def test_one_atom_in_a_huge_box_is_measured():
    lonely = Structure(Lattice.cubic(9000.0), ["H"], [[0, 0, 0]])
    assert empty_layer(*geometry(lonely)) == pytest.approx(9000 - 2 * 0.31)
    assert empty_sphere(*geometry(lonely)) == vacuum.WIDEST
