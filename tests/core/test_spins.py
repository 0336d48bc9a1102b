"""Spin systems: exact energies, symmetries, and what no lattice has."""

import json
from pathlib import Path

import numpy as np
import pytest

from matattn.datasets.j1j2 import load
from matattn.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "wavefunction"
SYSTEMS = json.loads((GOLDEN / "ed_energies.json").read_text())["systems"]
ROWS = [(key, row) for key, rows in SYSTEMS.items() for row in rows]


def system(lattice, extent, j2=0.5, **more):
    return load("test", lattice, extent, j2, **more)


@pytest.mark.parametrize("key, row", ROWS, ids=[f"{key}-{row['J2']}" for key, row in ROWS])
def test_exact_energies(key, row):
    lattice, extent, _ = key.split("_")
    spins = system(lattice, extent, row["J2"])
    energies, states = spins.exact
    assert energies * spins.sites == pytest.approx([row["E0"], row["E1"]], abs=1e-10)
    assert states.shape == (row["dim"], 2)


def test_published_energy_is_the_exact_one():
    for j2 in (0.0, 0.5):
        spins = system("square", "4x4", j2)
        assert spins.exact[0][0] == pytest.approx(spins.reference.energy_per_site, abs=1e-9)


def test_marshall_makes_the_ground_state_positive_and_keeps_the_energy():
    turned, plain = (system("square", "4x4", 0.0, marshall=m) for m in (True, False))
    (energy, _), states = turned.exact
    states = states[:, 0]
    assert energy == pytest.approx(plain.exact[0][0], abs=1e-12)
    assert abs(states.sum()) == pytest.approx(abs(states).sum(), rel=1e-9)
    assert abs(plain.exact[1][:, 0].sum()) < 0.5 * abs(states).sum()


@pytest.mark.parametrize(
    "lattice, extent, count",
    [
        ("chain", "10", 20), ("square", "6x6", 288), ("square", "4x6", 96), ("ladder", "6x2", 24),
        ("triangular", "6x6", 432),
    ],
)  # fmt: skip
def test_symmetries_form_a_group_that_keeps_the_bonds(lattice, extent, count):
    spins = system(lattice, extent, marshall=False)
    group = spins.symmetries
    assert len(group) == count
    rows = set(map(tuple, group))
    assert len(rows) == count and tuple(range(spins.sites)) in rows
    assert all(tuple(one[other]) in rows for one in group[:7] for other in group[-7:])
    pairs, strengths, _ = spins.bonds
    bonds = {(*sorted(pair), j) for pair, j in zip(pairs.tolist(), strengths, strict=True)}
    moved = group[:, pairs]
    for images in moved:
        kept = {(*sorted(p), j) for p, j in zip(images.tolist(), strengths, strict=True)}
        assert kept == bonds


def test_bounds_hold_the_spectrum():
    spins = system("chain", "6")
    matrix = spins.hamiltonian.to_dense() / (4 * spins.sites)
    low, high = spins.energy_bounds
    values = np.linalg.eigvalsh(matrix)
    assert low <= values[0] and values[-1] <= high


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lattice": "chain", "extent": "7", "total_sz": 0.5}, "odd loops; set marshall=false"),
        ({"lattice": "triangular", "extent": "4x4"}, "odd loops"),
        ({"lattice": "square", "extent": "4x5"}, "odd loops"),
        ({"lattice": "square", "extent": "4x4", "total_sz": 0.5}, "total_sz=0.5 does not exist"),
        ({"lattice": "square", "extent": "4x4", "total_sz": 9}, "from -8 to 8"),
        ({"lattice": "square", "extent": "4"}, "a square has 2 directions"),
        ({"lattice": "honeycomb", "extent": "4x4"}, "expected one of chain, square"),
        ({"lattice": "square", "extent": "4xq"}, "expected sites like 4x4"),
        ({"lattice": "square", "extent": "2x4"}, "neighbours twice"),
        ({"lattice": "chain", "extent": "4"}, "neighbours twice"),
    ],
)
def test_what_no_lattice_has(arguments, message):
    with pytest.raises(DataError, match=message):
        system(**arguments)


def test_large_lattices_have_no_exact_state():
    assert system("square", "6x6").exact is None
