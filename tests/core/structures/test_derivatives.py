"""Forces and stress against finite differences of the energy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from matattn.datasets import stillinger_weber
from matattn.kernels import periodic_attention as operator
from matattn.models.crystalformer import Crystalformer
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.structures.batch import collate
from matattn.structures.derivatives import energy_forces_stress, loss_gradient
from matattn.testing import random_crystal, random_rotation, rutile_supercell

DEVICE = torch.device("cpu")
BACKENDS = [name for name in ("cpu", "torch", "reference")
            if operator.BACKENDS[name].refuses(DEVICE, torch.float64) is None]  # fmt: skip
STEP = 1e-4  # Å, and strain


def network():
    torch.manual_seed(0)
    made = Crystalformer(dim=16, num_heads=2, num_blocks=2, ffn_dim=24, num_radial=16).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made.train()(batch_of(made, crystals()))  # fixes the statistics of the widths
    return made.eval()


def crystals():
    generator = np.random.default_rng(11)
    return [random_crystal(generator, atoms) for atoms in (3, 1, 2)]


def batch_of(made, samples):
    return collate(samples, made.image_rule(1e-12))


def total_energy(made):
    return lambda batch: made(batch)[:, 0] * torch.bincount(batch.batch)


def by_differences(function, step=STEP):
    """Fourth-order central difference of a function of one number at zero."""
    near, far = ((function(x) - function(-x)) / (2 * x) for x in (step, 2 * step))
    return (4 * near - far) / 3


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("MATATTN_BACKEND", request.param)


def test_forces_are_minus_the_slope_of_the_energy(backend):
    """With neighbour lists made anew for every displaced crystal."""
    made, samples = network(), crystals()
    forces = energy_forces_stress(total_energy(made), batch_of(made, samples)).forces
    atom = 0
    for number, sample in enumerate(samples):
        for row in range(len(sample["z"])):
            for axis in range(3):

                def energy(shift, sample=sample, row=row, axis=axis):
                    pos = sample["pos"].clone()
                    pos[row, axis] += shift
                    return total_energy(made)(batch_of(made, [sample | {"pos": pos}])).item()

                slope = by_differences(energy)
                assert abs(slope + forces[atom, axis].item()) <= 1e-6, (number, row, axis)
            atom += 1
    assert forces.abs().max() > 1e-2


def test_stress_is_the_slope_by_strain_over_volume(backend):
    made, samples = network(), crystals()
    result = energy_forces_stress(total_energy(made), batch_of(made, samples))
    for number, sample in enumerate(samples):
        volume = torch.linalg.det(sample["cell"][0]).abs().item()
        for a in range(3):
            for b in range(a, 3):  # a strain is symmetric, and so is the stress

                def energy(size, sample=sample, a=a, b=b):
                    strain = torch.eye(3, dtype=torch.float64)
                    strain[a, b] += size / 2
                    strain[b, a] += size / 2
                    strained = sample | {key: sample[key] @ strain for key in ("pos", "cell")}
                    return total_energy(made)(batch_of(made, [strained])).item()

                slope = by_differences(energy) / volume
                assert abs(slope - result.stress[number, a, b].item()) <= 1e-6, (number, a, b)
    assert result.stress.abs().max() > 1e-3


def test_symmetries_of_the_result():
    made, samples = network(), crystals()
    batch = batch_of(made, samples)
    result = energy_forces_stress(total_energy(made), batch)
    total = torch.zeros(3, 3, dtype=torch.float64).index_add(0, batch.batch, result.forces)
    assert total.abs().max() < 1e-12
    assert (result.stress - result.stress.transpose(1, 2)).abs().max() < 1e-12
    rotation = random_rotation()
    turned = replace(batch, pos=batch.pos @ rotation.T, cell=batch.cell @ rotation.T)
    other = energy_forces_stress(total_energy(made), turned)
    assert (other.energy - result.energy).abs().max() < 1e-12
    assert (other.forces - result.forces @ rotation.T).abs().max() < 1e-12
    assert (other.stress - rotation @ result.stress @ rotation.T).abs().max() < 1e-12
    assert not (result.energy.requires_grad or result.forces.requires_grad)


def test_a_loss_on_forces_and_stress_trains_the_parameters(backend):
    """Second derivatives: the gradient of the loss against its finite difference."""
    made = network()
    batch = collate(crystals(), made.image_rule(1e-3))  # the same images in all steps

    def loss(create_graph=False):
        result = energy_forces_stress(total_energy(made), batch, create_graph=create_graph)
        return result.forces.square().sum() + 100 * result.stress.square().sum()

    parameters = dict(made.named_parameters())
    gradients = torch.autograd.grad(loss(True), list(parameters.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if name == "head.2.bias":
            assert gradient is None or gradient.abs().max() == 0  # a constant has no forces
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        start = parameter.detach().clone()

        def along(step, parameter=parameter, start=start, direction=direction):
            parameter.data.copy_(start + step * direction)
            return loss().item()

        slope = by_differences(along)
        parameter.data.copy_(start)
        expected = (gradient * direction).sum().item()
        assert abs(slope - expected) <= 1e-6 * max(1, abs(expected)), name


def test_a_batch_reduced_by_symmetry_is_refused():
    made = network()
    batch = collate([rutile_supercell()], made.image_rule(1e-6, symmetry=1e-3))
    with pytest.raises(ValueError, match="batch of all atoms"):
        energy_forces_stress(total_energy(made), batch)


def test_an_energy_per_target_is_refused():
    made = network()
    with pytest.raises(ValueError, match=r"shape \(3, 1\), expected one value for each of 3"):
        energy_forces_stress(made, batch_of(made, crystals()))


def warm_diamonds():
    """Two crystals of two elements, with atoms a tenth of an Ångström from their places."""
    generator, samples = np.random.default_rng(4), []
    for cells in (1, 2):
        pos, cell = stillinger_weber.crystal(cells)
        pos = pos + generator.normal(scale=0.1, size=pos.shape)
        z = generator.choice([14, 32], len(pos))
        samples.append({"z": torch.tensor(z), "pos": torch.tensor(pos),
                        "cell": torch.tensor(cell)[None]})  # fmt: skip
    return samples


@pytest.mark.parametrize(("dtype", "shift", "most"), [(torch.float64, 1e-4, 1e-6),
                                                      (torch.float32, 1e-2, 1e-3)])  # fmt: skip
@pytest.mark.parametrize("heads", [0, 2])
def test_displaced_geometries_give_the_gradient_of_a_loss(dtype, shift, most, heads):
    """Against the second derivatives of the same loss."""
    torch.manual_seed(0)
    made = CrystalformerPotential(dim=16, hidden=16, channels=8, num_radial=16, num_heads=heads)
    made = made.to(dtype)
    batch = collate(warm_diamonds(), made.image_rule()).to(dtype=dtype)
    made.fit_sums(batch)
    count, atoms = batch.num_graphs, len(batch.z)
    generator = torch.Generator().manual_seed(1)
    energies, forces, stress = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((count,), (atoms, 3), (count, 3, 3))
    )

    def loss(energy, found_forces, found_stress):
        return (
            (energy - energies).abs().sum()
            + (found_forces - forces).square().sum()
            + 100 * (found_stress - 0.01 * stress).square().sum()
        )

    found = energy_forces_stress(made, batch, create_graph=True)
    values = (found.energy, found.forces, found.stress)
    parameters = list(made.parameters())
    exact = torch.autograd.grad(loss(*values), parameters)
    given = [value.detach().requires_grad_() for value in values]
    slopes = torch.autograd.grad(loss(*given), given)
    number = loss_gradient(made, batch, *slopes, shift=shift)
    cheap = torch.autograd.grad(number, parameters)
    apart = sum((a - b).square().sum() for a, b in zip(cheap, exact, strict=True))
    assert (apart / sum(b.square().sum() for b in exact)).sqrt() < most
