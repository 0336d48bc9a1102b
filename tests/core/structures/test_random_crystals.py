"""Random crystals: lists of neighbours and networks do not depend on how a crystal is written."""

import os
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from matattn.errors import StructureError
from matattn.models.coulgat import CoulGAT
from matattn.models.crystalformer import Crystalformer
from matattn.runtime import one_thread
from matattn.structures.batch import collate
from matattn.structures.image_rule import ImageRule
from matattn.structures.structure import tensors_from_arrays, validate_arrays
from matattn.testing import EXACT, TOLERANCE, CrystalContract, assert_close

# A long run, with other examples each time:
# MATATTN_EXAMPLES=5000 pytest tests/core/structures/test_random_crystals.py
examples = settings(
    max_examples=int(os.environ.get("MATATTN_EXAMPLES", "200")),
    derandomize="MATATTN_EXAMPLES" not in os.environ,
    deadline=None,
)
SIZES = {"num_targets": 2, "dim": 8, "num_heads": 2, "num_blocks": 2, "ffn_dim": 8}
RANGE = 7.0  # Å, of the lists that are compared
SLOW = 5000  # ms: beyond, a list of neighbours grows with something else than neighbours


@pytest.fixture(autouse=True, scope="module")
def on_one_thread():
    """Crystals of a few atoms are too small for more."""
    with one_thread():
        yield


class Infinite(CrystalContract):
    network_class = Crystalformer
    arguments = {**SIZES, "num_radial": 12}


class Screened(CrystalContract):
    network_class = CoulGAT
    arguments = SIZES


@cache
def networks():
    return [(contract, contract.network()) for contract in (Infinite(), Screened())]


@st.composite
def arrays(draw, most=40):
    """z, frac and cell: triclinic, with sheared sides of up to 1 : 100, 15 to 60 Å^3 per atom."""
    atoms = draw(st.integers(1, most))
    sides = [10 ** draw(st.floats(0, 2)) for _ in range(3)]
    shear = np.eye(3)
    shear[[1, 2, 2], [0, 0, 1]] = [draw(st.floats(-2, 2)) for _ in range(3)]
    cell = np.diag(np.divide(sides, min(sides))) @ shear
    cell *= np.cbrt(draw(st.floats(15, 60)) * atoms / np.linalg.det(cell))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return generator.integers(1, 99, atoms), generator.random((atoms, 3)), cell


@st.composite
def crystals(draw):
    """As the networks' tensors, without atoms on one place."""
    crystal = draw(arrays())
    try:
        validate_arrays(*crystal, "crystal")
    except StructureError:
        assume(False)
    return tensors_from_arrays(*crystal, torch.float64)


def rotate(crystal, generator):
    rotation = torch.from_numpy(Rotation.random(random_state=generator).as_matrix())
    return crystal | {key: crystal[key] @ rotation.T for key in ("pos", "cell")}


def translate(crystal, generator):
    return crystal | {"pos": crystal["pos"] + torch.from_numpy(generator.normal(0, 10, 3))}


def permute(crystal, generator):
    order = torch.from_numpy(generator.permutation(len(crystal["z"])))
    return crystal | {"z": crystal["z"][order], "pos": crystal["pos"][order]}


def move_atoms_to_other_cells(crystal, generator):
    images = torch.from_numpy(generator.integers(-5, 6, crystal["pos"].shape)).double()
    return crystal | {"pos": crystal["pos"] + images @ crystal["cell"][0]}


def change_basis(crystal, generator):
    """To vectors that are sums of the old ones, in another order: whole numbers, determinant ±1."""
    basis = np.eye(3)[generator.permutation(3)]
    for _ in range(3):
        to, added = generator.choice(3, 2, replace=False)
        basis[to] += generator.integers(-2, 3) * basis[added]
    return crystal | {"cell": torch.from_numpy(basis) @ crystal["cell"]}


CHANGES = [rotate, translate, permute, move_atoms_to_other_cells, change_basis]


def surroundings(crystal):
    """Of all atoms, sorted: sums over their neighbours that fade out smoothly at ``RANGE``."""
    z, pos, cell = crystal["z"].numpy(), crystal["pos"].numpy(), crystal["cell"][0].numpy()
    neighbors = ImageRule(RANGE)(z, pos, cell)
    target = np.repeat(np.arange(len(z)), neighbors.counts)
    assert np.isfinite(neighbors.distance).all() and neighbors.distance.max() <= RANGE
    assert (
        (neighbors.distance < 1e-3) == ((neighbors.source == target) & ~neighbors.image.any(1))
    ).all()
    weight = z[neighbors.source] * np.maximum(1 - (neighbors.distance / RANGE) ** 2, 0) ** 2
    return np.sort(np.bincount(target, weight, len(z)))


@pytest.mark.parametrize("change", CHANGES)
@examples
@given(crystal=crystals(), seed=st.integers(0, 2**32))
def test_the_same_crystal(change, crystal, seed):
    changed = change(crystal, np.random.default_rng(seed))
    assert np.allclose(surroundings(changed), surroundings(crystal), rtol=EXACT, atol=0)
    for contract, network in networks():
        first, second = contract.output(network, [crystal, changed])
        assert first.isfinite().all()
        assert_close(second, first)


def overlapping(crystal, first, second, offset):
    """Return the crystal with one atom moved onto another one, in some cell of the lattice."""
    z, frac, cell = crystal
    first, second = first % len(z), second % len(z)
    assume(first != second)
    moved = frac.copy()
    moved[first] = frac[second] + offset[:3] + np.array(offset[3:]) @ np.linalg.inv(cell)
    return z, moved, cell


whole = st.integers(-1000, 1000)
little = st.floats(-0.005, 0.005)  # Å, in each direction


@examples
@given(
    arrays(), st.integers(0, 39), st.integers(0, 39), st.tuples(*3 * [whole], *3 * [little])
)  # fmt: skip
def test_atoms_on_one_place_are_refused(crystal, first, second, offset):
    with pytest.raises(StructureError, match=r"crystal: sites \d+ and \d+ overlap \(.* Å apart\)"):
        validate_arrays(*overlapping(crystal, first, second, offset), "crystal")


NO_PLACES = [-1e-17, 1e3, -1e5, 1e6, 1e7, 1e308, np.nan, np.inf]


@st.composite
def whatever(draw):
    """Any three vectors: short, long, nearly in one plane or direction; atoms far away, or none."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    cell = 10 ** draw(st.floats(0, 4)) * generator.uniform(-1, 1, (3, 3))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        cell[second] *= draw(st.sampled_from([1.0, 1.0, 1.0, 0.03, 1e-6]))
        cell[second] += draw(st.integers(-9, 9)) * cell[first]
    frac = generator.random((draw(st.sampled_from([2, 1, 3, 0])), 3))
    if len(frac) and draw(st.booleans()):
        frac[-1, draw(st.integers(0, 2))] = draw(st.sampled_from(NO_PLACES))
    return [11] * len(frac), frac, cell


@settings(examples, deadline=SLOW)
@given(whatever())
def test_whatever_numbers_are_refused_or_used(numbers):
    try:
        validate_arrays(*numbers, "crystal")
    except StructureError as error:
        assert str(error).startswith("crystal: ") and "\n" not in str(error)
        return
    crystal = tensors_from_arrays(*numbers, torch.float64)
    surroundings(crystal)
    for contract, network in networks():
        assert contract.output(network, [crystal]).isfinite().all()


@pytest.mark.parametrize(
    "cell, message",
    [
        (np.diag([1e-6, 1e4, 1e4]), "lattice vector 1 rises 1e-06 Å from the plane"),
        ([[1e4, 0, 0], [1e4, 1e-3, 0], [0, 0, 1e4]], "lattice vector 1 rises 0.001 Å"),
        ([[50, 0, 0], [45, 0.01, 0], [0, 0, 60]], "lattice vector 1 rises 0.011 Å"),
    ],
)
def test_flat_cells_are_refused(cell, message):
    """The list of neighbours of one atom would go through millions of cells."""
    with pytest.raises(StructureError, match=message):
        validate_arrays([11], [[0, 0, 0]], cell, "crystal")


@st.composite
def symmetric_crystals(draw):
    """Draw two elements on twelfths of cells of all systems but two, and some symmetry."""
    a, b, c = (draw(st.floats(4, 9)) for _ in range(3))
    cell = draw(
        st.sampled_from(
            [
                np.diag([a, a, a]),
                np.diag([a, a, c]),
                np.diag([a, b, c]),
                np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]]),
                np.array([[-a, a, a], [a, -a, a], [a, a, -a]]) / 2**0.5,
                np.array([[0, a, a], [a, 0, a], [a, a, 0]]) / 2**0.5,
            ]
        )
    )
    twelfths = st.tuples(*3 * [st.sampled_from([0, 2, 3, 4, 6, 8, 9, 10])])
    turn, invert = draw(st.booleans()), draw(st.booleans())
    atoms = {}
    for position in draw(st.lists(twelfths, min_size=1, max_size=4)):
        kind = draw(st.sampled_from([8, 22]))
        turned = [np.roll(position, n) for n in range(3 if turn else 1)]
        inverted = [-position for position in turned] if invert else []
        for position in (*turned, *inverted):
            atoms.setdefault(tuple(position % 12), kind)
    z, places = list(atoms.values()), list(atoms)
    return tensors_from_arrays(z, np.array(places) / 12, cell, torch.float64)


@examples
@given(symmetric_crystals())
def test_equivalent_atoms_may_stand_as_one(crystal):
    for contract, network in networks():
        reduced = collate([crystal], network.image_rule(TOLERANCE, symmetry=1e-6))
        with torch.no_grad():
            assert_close(network(reduced), contract.output(network, [crystal]))
