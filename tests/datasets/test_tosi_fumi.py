"""The Tosi-Fumi model against another Ewald sum, published numbers, and what is made with it."""

import numpy as np
import pytest
from pymatgen.analysis.ewald import EwaldSummation
from pymatgen.core import Structure

from matattn.datasets import tosi_fumi as model
from matattn.errors import StructureError
from matattn.potentials import sampling
from matattn.potentials.sampling import Atoms, batch, rattled, strained
from matattn.structures.derivatives import energy_forces_stress


def evaluate(*atoms):
    return energy_forces_stress(model.energy, batch(atoms, model.CUTOFF))


@pytest.fixture
def only_coulomb(monkeypatch):
    """Leave charges only."""
    monkeypatch.setattr(model, "B", 0.0)
    monkeypatch.setattr(model, "C", (0.0,) * 3)
    monkeypatch.setattr(model, "D", (0.0,) * 3)


def test_madelung_constant_of_rock_salt(only_coulomb):
    nearest = model.LATTICE / 2
    madelung = -evaluate(model.crystal(1)).energy.item() / 4 * nearest / model.COULOMB
    assert madelung == pytest.approx(1.747564594633, abs=1e-8)


def test_energy_and_forces_are_those_of_another_ewald_sum(only_coulomb):
    generator = np.random.default_rng(0)
    atoms = strained(rattled(model.crystal(1), 0.4, generator), 0.2, generator)
    structure = Structure(atoms.cell, atoms.z, atoms.pos, coords_are_cartesian=True)
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    other = EwaldSummation(structure, compute_forces=True, acc_factor=16)
    found = evaluate(atoms)
    assert found.energy.item() == pytest.approx(other.total_energy, abs=1e-6)
    np.testing.assert_allclose(found.forces, other.forces, atol=1e-6)


def test_result_does_not_depend_on_how_the_sum_is_split(monkeypatch):
    generator = np.random.default_rng(1)
    atoms = strained(rattled(model.crystal(2), 0.3, generator), 0.1, generator)
    first = evaluate(atoms)
    monkeypatch.setattr(model, "ALPHA", 0.5)
    monkeypatch.setattr(model, "LARGEST_K", 2 * 0.5 * np.log(1e12) ** 0.5)
    second = evaluate(atoms)
    assert first.energy.item() == pytest.approx(second.energy.item(), abs=1e-6)
    np.testing.assert_allclose(first.forces, second.forces, atol=1e-7)
    np.testing.assert_allclose(first.stress, second.stress, atol=1e-8)


def test_forces_and_stress_are_slopes_of_the_energy():
    generator = np.random.default_rng(2)
    atoms = strained(rattled(model.crystal(1), 0.3, generator), 0.1, generator)
    found, step = evaluate(atoms), 1e-4  # jumps of 1e-9 eV where pairs leave
    moves, strain = generator.normal(size=atoms.pos.shape), generator.normal(size=(3, 3))
    strain = (strain + strain.T) / 2

    def energy(sign, of_cell):
        bent = np.eye(3) + sign * step * strain * of_cell
        pos = atoms.pos @ bent + sign * step * moves * (not of_cell)
        return evaluate(atoms._replace(pos=pos, cell=atoms.cell @ bent)).energy.item()

    slope = (energy(1, False) - energy(-1, False)) / (2 * step)
    assert slope == pytest.approx(-(found.forces.numpy() * moves).sum(), abs=2e-5)
    slope = (energy(1, True) - energy(-1, True)) / (2 * step)
    volume = abs(np.linalg.det(atoms.cell))
    assert slope == pytest.approx(volume * (found.stress[0].numpy() * strain).sum(), abs=2e-5)


def test_energies_of_several_crystals_are_those_of_each():
    generator = np.random.default_rng(3)
    crystals = [strained(model.crystal(cells), 0.05, generator) for cells in (1, 2)]
    together = evaluate(*crystals).energy
    assert together.tolist() == pytest.approx(
        [evaluate(one).energy.item() for one in crystals], abs=1e-9
    )


def test_other_elements_and_charged_cells_are_refused():
    salt = model.crystal(1)
    for z in (np.where(salt.z == 17, 35, 11), np.full(8, 11)):
        with pytest.raises(StructureError, match="as many Na as Cl"):
            evaluate(salt._replace(z=z))


def test_rock_salt_has_the_measured_size_and_energy():
    """Measured: 5.60 Å at 0 K, 7.9 eV a pair of ions (Kittel)."""
    lattices = np.linspace(5.5, 5.75, 11)
    energies = evaluate(*(model.crystal(1, one) for one in lattices)).energy.numpy() / 4
    fit = np.polynomial.Polynomial.fit(lattices, energies, 3)
    (rest,) = [r.real for r in fit.deriv().roots() if 5.5 < r.real < 5.75]
    assert rest == pytest.approx(5.60, rel=0.01)
    assert fit(rest) == pytest.approx(-7.9, rel=0.03)


def test_frames_are_of_all_kinds_and_repeatable(monkeypatch, tmp_path):
    monkeypatch.setattr(model, "BEFORE", 20)
    monkeypatch.setattr(model, "MELTED", sampling.BETWEEN)
    monkeypatch.setattr(model, "KEY", "tosi_fumi, short")
    data = model.load("salt", [6, 2, 2], seed=3)
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    assert {frame.group for frame in data.frames} == {"solid", "melt", "strained"}
    assert data.elements() == [11, 17] and not data.doubts
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))  # not what the first call has kept
    assert data.fingerprint() == model.load("salt", [6, 2, 2], seed=3).fingerprint()


def order(atoms: Atoms) -> float:
    """|S(200)| of an ion, the largest of three directions: 1 in a crystal at rest."""
    phases = 2j * np.pi * 4 * atoms.pos @ np.linalg.inv(atoms.cell)  # two cells along each axis
    return float(np.abs(np.exp(phases).mean(0)).max())


@pytest.mark.slow
def test_melts_have_melted():
    generator = np.random.default_rng(4)
    (temperatures, lattice), count = model.DYNAMICS["melt"], 3
    hot = model.melted([model.crystal(lattice=lattice)] * count, generator)
    cold = sampling.dynamics(model.LABELLER, hot, temperatures, 4, model.BEFORE, generator)
    assert order(model.crystal(lattice=lattice)) == pytest.approx(1)
    for place in range(count):
        assert np.mean([order(atoms) for atoms in cold[place::count]]) < 0.35
