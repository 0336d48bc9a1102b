"""Crystals come to rest in the minimum of the exact model."""

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.filters import UnitCellFilter
from ase.optimize import FIRE
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from matattn.datasets import stillinger_weber
from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.fixed_symmetry import SpaceGroup
from matattn.workflows.potentials.relaxation import Settings, relax


def crystals(count=6, size=0.02):
    generator, made = np.random.default_rng(0), []
    for number in range(count):
        pos, cell = stillinger_weber.crystal(1, 5.2 + 0.08 * number)
        strain = np.eye(3) + generator.normal(scale=size, size=(3, 3))
        moved = pos / cell[0, 0] + generator.normal(scale=0.01, size=pos.shape)
        made.append(Structure(Lattice(cell @ strain), ["Si"] * len(pos), moved))
    return made


def test_all_reach_the_diamond_of_the_model(exact):
    settings = Settings(max_force=1e-3, max_stress=0.01)
    found = sorted(relax(exact, crystals(), settings), key=lambda one: one.number)
    assert [one.number for one in found] == list(range(6))
    for one in found:
        assert not one.problem and one.max_force < 1e-3 and one.max_stress < 0.01
        assert one.energy_after / 8 == pytest.approx(-4.3366, abs=1e-4)
        assert one.structure.volume ** (1 / 3) == pytest.approx(5.431, abs=1e-3)
        assert one.energy_before > one.energy_after and one.steps > 5


def test_batches_change_nothing(exact):
    """A crystal alone takes the same way as among others."""
    together = {one.number: one for one in relax(exact, crystals())}
    (alone,) = relax(exact, crystals()[3:4])
    assert alone.steps == together[3].steps
    np.testing.assert_allclose(
        alone.structure.cart_coords, together[3].structure.cart_coords, atol=1e-7
    )


def test_structures_are_taken_when_there_is_room(exact, monkeypatch):
    monkeypatch.setattr("matattn.workflows.potentials.relaxation.ATOMS_PER_BATCH", 16)
    taken = []

    def stream():
        for number, structure in enumerate(crystals() * 3):
            taken.append(number)
            yield structure

    relaxing = relax(exact, stream())
    next(relaxing)
    assert len(taken) < 6  # of 8 atoms each, and the next one waits
    found = [one.number for one in relaxing]
    assert len(found) == len(taken) - 1 == 3 * len(crystals()) - 1


def test_pressure_and_a_fixed_cell(exact):
    (pressed,) = relax(exact, crystals(1), Settings(pressure=5.0, max_stress=0.01))
    batch = exact.batch([{"z": [14] * 8, "pos": pressed.structure.cart_coords,
                          "cell": pressed.structure.lattice.matrix}])  # fmt: skip
    stress = energy_forces_stress(exact.energy, batch).stress[0].numpy() * GPA
    np.testing.assert_allclose(stress, -5 * np.eye(3), atol=0.02)
    (first,) = crystals(1)
    (fixed,) = relax(exact, [first], Settings(fixed_cell=True))
    np.testing.assert_array_equal(fixed.structure.lattice.matrix, first.lattice.matrix)
    assert fixed.max_force < 0.01 and fixed.energy_after < fixed.energy_before


def test_a_saddle_stays_one_only_where_symmetry_is_fixed(exact):
    """Body-centred silicon is one; an atom of it is off by less than the tolerance."""
    centred = Structure(Lattice.cubic(3.1), ["Si"] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]])
    centred.make_supercell(2)
    centred.translate_sites([0], [0.0004, 0.0001, 0.0002])
    kept, free = (
        next(relax(exact, [centred], Settings(fixed_symmetry=fixed, max_force=1e-3)))
        for fixed in (True, False)
    )
    assert SpaceGroup.of(kept.structure, 1e-5).symbol == "Im-3m"
    assert SpaceGroup.of(free.structure, 1e-2).symbol != "Im-3m"
    assert free.energy_after < kept.energy_after - 0.3


def test_symmetry_stays(exact):
    """A tetragonal crystal stays tetragonal, its atoms on their special positions."""
    pos, cell = stillinger_weber.crystal(1, 5.6)
    strain = np.diag([1.0, 1.0, 1.05])
    tetragonal = Structure(Lattice(cell @ strain), ["Si"] * 8, pos / cell[0, 0])
    (found,) = relax(exact, [tetragonal], Settings(max_steps=8))
    lattice = found.structure.lattice.matrix
    np.testing.assert_allclose(lattice, np.diag(np.diag(lattice)), atol=1e-10)
    assert lattice[0, 0] == pytest.approx(lattice[1, 1], abs=1e-10)
    assert abs(lattice[2, 2] - lattice[0, 0]) > 1e-3
    np.testing.assert_allclose(found.structure.frac_coords, pos / cell[0, 0], atol=1e-10)


def test_what_does_not_come_to_rest_says_why(exact):
    (stopped,) = relax(exact, crystals(1), Settings(max_steps=3))
    assert stopped.problem == "not at rest after 3 steps" and stopped.steps == 3
    apart = Structure(Lattice.cubic(40), ["Si"] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]])
    (gas,) = relax(exact, [apart], Settings())
    assert not gas.problem and gas.steps == 0  # atoms that do not see each other are at rest
    (lost,) = relax(exact, crystals(1), Settings(pressure=-200.0))
    assert "the potential is lost here" in lost.problem


class ExactCalculator(Calculator):
    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, exact):
        super().__init__()
        self.exact = exact

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        batch = self.exact.batch([{"z": atoms.numbers, "pos": atoms.positions,
                                   "cell": np.array(atoms.cell)}])  # fmt: skip
        found = energy_forces_stress(self.exact.energy, batch)
        stress = found.stress[0].numpy()
        self.results = {"energy": found.energy.item(), "forces": found.forces.numpy(),
                        "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]}  # fmt: skip


def test_ase_finds_the_same_minimum(exact):
    (first,) = crystals(1)
    (ours,) = relax(exact, [first], Settings(max_force=1e-3, max_stress=0.01))
    atoms = AseAtomsAdaptor.get_atoms(first)
    atoms.calc = ExactCalculator(exact)
    FIRE(UnitCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=500)
    assert ours.energy_after == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    assert ours.structure.volume == pytest.approx(atoms.get_volume(), rel=1e-4)
