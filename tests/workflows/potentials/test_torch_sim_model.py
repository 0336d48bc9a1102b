"""A potential in TorchSim: its own checks, our calculator, its optimiser."""

import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

import matattn
from matattn.errors import StructureError
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.workflows.potentials.predict import Potential

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_sim
    from torch_sim.models.interface import validate_model_outputs

CPU = torch.device("cpu")


def state_of(atoms, dtype=torch.float64):
    return torch_sim.io.atoms_to_state(atoms, CPU, dtype)


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    network = CrystalformerPotential(dim=8, channels=4, hidden=8, cutoff=4.0)
    return Potential(network, {"elements": [1, 8, 14, 26]})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_its_own_checks_pass(untrained, dtype):
    validate_model_outputs(untrained.torch_sim(dtype), CPU, getattr(torch, dtype))


def test_it_is_the_calculator(trained):
    systems = [bulk("Si", cubic=True), bulk("Si") * (2, 1, 1)]
    for number, atoms in enumerate(systems):
        atoms.rattle(0.05, seed=number)
        atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.05, 1, 0], [0, 0, 1]], scale_atoms=True)
    potential = matattn.load(trained[0] / "model")
    found = potential.torch_sim()(state_of(systems))
    calculator = potential.calculator()
    forces = found["forces"].numpy()
    for number, atoms in enumerate(systems):
        atoms.calc = calculator
        assert found["energy"][number].item() == pytest.approx(atoms.get_potential_energy())
        own, forces = forces[: len(atoms)], forces[len(atoms) :]
        np.testing.assert_allclose(own, atoms.get_forces(), atol=1e-9)
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(found["stress"][number].numpy(), stress, atol=1e-12)


def test_its_optimiser_finds_a_minimum(trained):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.02, seed=1)
    model = matattn.load(trained[0] / "model").torch_sim()
    before = model(state_of([atoms]))["energy"].item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        final = torch_sim.optimize(system=state_of([atoms]), model=model, max_steps=200,
                                   optimizer=torch_sim.optimizers.fire)  # fmt: skip
    found = model(final)
    assert found["energy"].item() < before
    assert found["forces"].norm(dim=1).max().item() < 0.1


def test_molecules_have_no_stress_and_unknown_elements_are_refused(untrained):
    water = molecule("H2O", vacuum=5.0)
    found = untrained.torch_sim()(state_of([water]))
    assert not found["stress"].any() and found["forces"].any()
    with pytest.raises(StructureError, match="system 1: Au is not among"):
        untrained.torch_sim()(state_of([bulk("Au")]))
    with pytest.raises(ValueError, match="dtype='float16': choose float64, float32"):
        untrained.torch_sim("float16")
