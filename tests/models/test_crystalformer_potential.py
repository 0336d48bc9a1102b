"""The potential: symmetries, sums over atoms, and smoothness where neighbours leave the range."""

import numpy as np
import pytest
import torch

from matattn.models.crystalformer_potential import CrystalformerPotential, decay
from matattn.structures.batch import collate
from matattn.structures.derivatives import energy_forces_stress
from matattn.testing import random_crystal, random_rotation

HEADS = (0, 2)


@pytest.fixture(params=HEADS)
def potential(request):
    torch.manual_seed(0)
    made = CrystalformerPotential(
        dim=16, hidden=16, channels=8, num_radial=16, num_heads=request.param
    ).double()
    made.constants.normal_()
    made.binding.normal_()
    made.scale.fill_(0.7)
    made.fit_sums(batch_of(made, crystals()))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def crystals(*sizes):
    generator = np.random.default_rng(3)
    return [random_crystal(generator, atoms) for atoms in sizes or (1, 2, 5)]


def batch_of(made, samples):
    return collate(samples, made.image_rule())


def energies(made, samples):
    with torch.no_grad():
        return made(batch_of(made, samples))


def same(made, samples, change):
    before, after = energies(made, samples), energies(made, [change(dict(s)) for s in samples])
    assert (before - after).abs().max() < 1e-11


def test_energies_do_not_depend_on_the_description(potential):
    samples = crystals()
    for rotation in (random_rotation(), -random_rotation()):
        same(potential, samples, lambda s, r=rotation: s | {
            "pos": s["pos"] @ r.T, "cell": s["cell"] @ r.T,
        })  # fmt: skip
    shift = torch.tensor([0.3, -1.7, 2.9], dtype=torch.float64)
    same(potential, samples, lambda s: s | {"pos": s["pos"] + shift})
    same(potential, samples, lambda s: s | {"z": s["z"].flip(0), "pos": s["pos"].flip(0)})
    basis = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, -1]], dtype=torch.float64)
    same(potential, samples, lambda s: s | {"cell": basis @ s["cell"]})


def test_energies_add_up(potential):
    (sample,) = crystals(3)
    cell = sample["cell"].clone()
    cell[0, 2] *= 2
    double = {
        "z": sample["z"].repeat(2), "cell": cell,
        "pos": torch.cat([sample["pos"], sample["pos"] + sample["cell"][0, 2]]),
    }  # fmt: skip
    one, two = energies(potential, [sample, double])
    assert abs(two - 2 * one) < 1e-11
    generator = torch.Generator().manual_seed(1)
    clusters = [
        {"z": torch.tensor([14, 8, 1]), "cell": torch.zeros(1, 3, 3, dtype=torch.float64),
         "pos": 2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)}
        for _ in range(2)
    ]  # fmt: skip
    both = {
        "z": torch.cat([c["z"] for c in clusters]), "cell": clusters[0]["cell"],
        "pos": torch.cat([clusters[0]["pos"], clusters[1]["pos"] + 50]),
    }  # fmt: skip
    first, second, together = energies(potential, [*clusters, both])
    assert abs(together - first - second) < 1e-11


def test_a_lone_atom_has_the_constant_of_its_element(potential):
    alone = {
        "z": torch.tensor([26]), "pos": torch.zeros(1, 3, dtype=torch.float64),
        "cell": torch.zeros(1, 3, 3, dtype=torch.float64),
    }  # fmt: skip
    assert energies(potential, [alone]).item() == pytest.approx(potential.constants[26].item())


def test_all_vanishes_at_the_cutoff_and_beyond():
    distance = torch.linspace(0, 5.999, 1000, dtype=torch.float64)
    grown = decay(distance, 6.0)
    assert (grown.diff() > 0).all() and grown[0] == 0 and grown[-1] > 500
    assert torch.isfinite(decay(torch.tensor([6.0, 6.01]), 6.0)).all()


def test_the_energy_is_smooth_where_a_neighbour_leaves(potential):
    """What the forces do not explain of the energy along a path through the cutoff."""
    start = {
        "z": torch.tensor([14, 14, 8]), "cell": torch.zeros(1, 3, 3, dtype=torch.float64),
        "pos": torch.tensor([[0, 0, 0], [2.0, 0.5, 0], [0, 0, 5.0]], dtype=torch.float64),
    }  # fmt: skip
    step, values, slopes = 0.004, [], []
    for number in range(260):
        pos = start["pos"].clone()
        pos[2, 2] += number * step
        found = energy_forces_stress(potential, batch_of(potential, [start | {"pos": pos}]))
        values.append(found.energy.item())
        slopes.append(-found.forces[2, 2].item())
    values, slopes = np.array(values), np.array(slopes)
    unexplained = np.diff(values) - step * (slopes[1:] + slopes[:-1]) / 2
    assert np.abs(unexplained).max() < 1e-7  # of the trapezoids alone
    assert np.ptp(values) > 1e-6  # something happens


def test_forces_are_the_slopes(potential):
    samples = crystals()
    found = energy_forces_stress(potential, batch_of(potential, samples))
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(found.forces.shape, generator=generator, dtype=torch.float64)
    parts = direction.split([len(s["z"]) for s in samples])

    def along(step):
        moved = [s | {"pos": s["pos"] + step * d} for s, d in zip(samples, parts, strict=True)]
        return energies(potential, moved).sum().item()

    slope = (8 * (along(1e-4) - along(-1e-4)) - along(2e-4) + along(-2e-4)) / 12e-4
    assert slope == pytest.approx(-(direction * found.forces).sum().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degree": 4}, "degree=4: expected 1 to 3"),
        ({"cutoff": 0.0}, "cutoff=0.0 Å: expected more than 0"),
        ({"channels": 0}, "at least 1"),
        ({"dim": 10, "num_heads": 3}, "dim=10 cannot be shared by num_heads=3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrystalformerPotential(**arguments)
