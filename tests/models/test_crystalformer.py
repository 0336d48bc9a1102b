"""Crystalformer: contract, published sizes, initialisation, and the golden network."""

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.kernels.periodic_attention import reference
from matattn.models.crystalformer import (
    RECIPROCAL,
    SUMMATIONS,
    Crystalformer,
    from_reference_state,
)
from matattn.models.element_features import element_features
from matattn.structures.batch import collate
from matattn.structures.image_rule import ImageRule
from matattn.structures.structure import tensors_from_arrays
from matattn.testing import CrystalContract, random_crystal, rutile_supercell

GOLDEN = Path(__file__).parents[1] / "golden" / "crystalformer" / "model_small.npz"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
MODES = {"published_r2": "R2", "published_adaptive": "adaptive", "converged": "converged"}


class TestCrystalformer(CrystalContract):
    network_class = Crystalformer
    arguments = {
        "num_targets": 2,
        "dim": 16,
        "num_heads": 2,
        "num_blocks": 2,
        "ffn_dim": 24,
        "num_radial": 12,
    }


class TestWithElementProperties(CrystalContract):
    network_class = Crystalformer
    arguments = {
        "dim": 12,
        "num_heads": 3,
        "num_blocks": 1,
        "ffn_dim": 24,
        "num_radial": 20,
        "radial_max": 8.0,
        "element_features": "properties",
    }


class TestWithoutPsi(CrystalContract):
    network_class = Crystalformer
    arguments = {"dim": 16, "num_heads": 2, "num_blocks": 2, "ffn_dim": 24, "num_radial": 0}

    def test_one_atom_sees_its_lattice(self) -> None:
        """Without psi a crystal of one atom has only one value to average: it is lattice-blind."""
        network, sample = self.network(), self.samples()[0]
        stretched = sample | {"cell": sample["cell"] * 1.05}
        difference = self.output(network, [stretched]) - self.output(network, [sample])
        assert difference.abs().max() < 1e-12


class TestScalarMoments(CrystalContract):
    network_class = Crystalformer
    arguments = TestCrystalformer.arguments | {"moments": "scalar", "moment_channels": 3}


class TestAngularMoments(CrystalContract):
    network_class = Crystalformer
    arguments = TestCrystalformer.arguments | {"moments": "angular", "activation": "silu"}

    def test_angles_are_seen(self) -> None:
        """Four neighbours of one atom at the corners of a square, or of a tetrahedron."""
        square = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]
        half = 3**-0.5
        tetrahedron = [[half, half, half], [half, -half, -half], [-half, half, -half],
                       [-half, -half, half]]  # fmt: skip
        cell = torch.eye(3, dtype=torch.float64)[None] * 30
        samples = [
            {"z": torch.tensor([6, 1, 1, 1, 1]), "cell": cell, "pos": torch.tensor(
                [[0.0, 0, 0], *corners], dtype=torch.float64)}
            for corners in (square, tetrahedron)
        ]  # fmt: skip
        network = self.network()
        network.image_rule = lambda *_: ImageRule(1.2)  # no neighbour of a neighbour
        seen = self.output(network, samples)
        assert (seen[0] - seen[1]).abs().max() > 1e-4
        blind = TestScalarMoments().network()
        blind.image_rule = network.image_rule
        same = self.output(blind, samples)
        assert (same[0] - same[1]).abs().max() < 1e-12


class TestAngularDualSpace(CrystalContract):
    network_class = Crystalformer
    arguments = TestScalarMoments.arguments | {
        "num_heads": 4, "num_blocks": 1, "reciprocal": "converged", "moments": "angular",
        "moment_degree": 2,
    }  # fmt: skip


class TestDualSpace(CrystalContract):
    network_class = Crystalformer
    arguments = {
        "num_targets": 2,
        "dim": 16,
        "num_heads": 4,
        "num_blocks": 1,
        "ffn_dim": 24,
        "num_radial": 12,
        "reciprocal": "converged",
    }


class TestPublishedDualSpace(CrystalContract):
    network_class = Crystalformer
    arguments = TestDualSpace.arguments | {"reciprocal": "published"}

    def samples(self):
        generator = np.random.default_rng(7)
        return [random_crystal(generator, atoms) for atoms in (1, 12, 5, 3)]

    def test_supercell(self) -> None:
        """The published wave vectors |m_t| <= 2 are too few for a long cell."""
        with pytest.raises(AssertionError, match="differs by"):
            super().test_supercell()

    def test_other_basis_of_the_same_lattice(self) -> None:
        """They depend on the basis as well."""
        with pytest.raises(AssertionError, match="differs by"):
            super().test_other_basis_of_the_same_lattice()


@pytest.mark.parametrize(
    "arguments, count",
    [({}, 853_505), ({"num_radial": 0}, 820_737), ({"num_blocks": 7}, 1_471_745)],
)
def test_published_number_of_parameters(arguments, count):
    """The published 853,517 / 820,749 / 1,471,766 count three frozen scalars per block as well."""
    network = Crystalformer(**arguments)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trainable == count
    assert trainable + 3 * len(network.blocks) in (853_517, 820_749, 1_471_766)


def test_dual_space_has_radial_weights_for_half_of_the_heads():
    network = Crystalformer(reciprocal="published")
    assert network.blocks[0].attention.radial_weight.shape == (4, 16, 64)
    assert sum(p.numel() for p in network.parameters()) == 853_505 - 4 * 4 * 16 * 64


def test_initialisation_is_t_fixup():
    torch.manual_seed(0)
    network = Crystalformer()
    block = network.blocks[1]
    attention = block.attention
    xavier = math.sqrt(6 / 256)
    scale = 0.67 * 4**-0.25
    for linear, bound in (
        (attention.q_proj, xavier),
        (attention.k_proj, xavier),
        (attention.v_proj, xavier * scale),
        (attention.out_proj, xavier * scale),
        (block.linear1, math.sqrt(6 / 640) * scale),
        (block.linear2, math.sqrt(6 / 640) * scale),
    ):
        assert 0.98 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() == 0
    assert 0.98 * 0.0221 < attention.radial_weight.abs().max() <= 0.02210
    assert attention.sigma_weight.std().item() == pytest.approx(0.25, rel=0.2)
    assert network.embedding.weight.std().item() == pytest.approx(128**-0.5 * 36**-0.25, rel=0.02)


def test_sigma_statistics_are_fitted_once_in_training():
    contract = TestCrystalformer()
    samples = contract.samples()
    torch.manual_seed(0)
    network = Crystalformer(**contract.arguments).double().eval()
    network(contract.batch(network, samples))
    attention = network.blocks[1].attention
    assert not attention.sigma_fitted
    network.train()(contract.batch(network, samples))
    mean, std = attention.sigma_mean.clone(), attention.sigma_std.clone()
    assert attention.sigma_fitted and std != 1
    network(contract.batch(network, samples[:2]))
    assert torch.equal(attention.sigma_mean, mean) and torch.equal(attention.sigma_std, std)


def test_widths_stay_below_their_bound():
    contract = TestCrystalformer()
    network = contract.network()
    attention = network.blocks[0].attention
    q = 100 * torch.randn(50, 2, 8, dtype=torch.float64)
    sigma = attention.inverse_square_sigma(q).rsqrt()
    assert sigma.max().item() <= network.sigma_max + 1e-9
    assert network.sigma_max == pytest.approx(1.98, abs=0.001)
    assert network.cutoff(1e-6) == pytest.approx(10.4, abs=0.01)


def test_widths_are_scaled_by_all_atoms_that_a_row_stands_for():
    """The statistics of the first training batch, from all atoms and from the orbits alone."""
    statistics = []
    for symmetry in (0.0, 1e-6):
        torch.manual_seed(1)
        network = Crystalformer(**TestCrystalformer.arguments).double().train()
        samples = [rutile_supercell(), *TestCrystalformer().samples()]
        network(collate(samples, network.image_rule(1e-12, symmetry)))
        statistics.append([(block.attention.sigma_mean, block.attention.sigma_std)
                           for block in network.blocks])  # fmt: skip
    torch.testing.assert_close(statistics[0], statistics[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {"reciprocal": "converged"},
        {"summation": "published_r2"},
        {"summation": "published_adaptive"},
    ],
)
def test_what_needs_all_atoms_refuses_a_batch_reduced_by_symmetry(arguments):
    network = Crystalformer(dim=16, num_heads=2, **arguments)
    assert network.image_rule(1e-6, symmetry=1e-3).symmetry == 0
    batch = collate([rutile_supercell()], ImageRule(6.0, symmetry=1e-3))
    with pytest.raises(ValueError, match="a batch of all atoms"):
        network(batch)


def test_a_batch_may_carry_distances_of_its_own():
    """A key of that name in a PyG batch means nothing, as long as there is no symmetry."""
    contract = TestCrystalformer()
    network = contract.network()
    batch = contract.batch(network, contract.samples())
    other = dataclasses.replace(batch, distance=torch.zeros(batch.edge_index.shape[1]))
    assert torch.equal(network(batch), network(other))


@pytest.mark.parametrize("reciprocal", ["published", "converged"])
def test_dual_space_attention_by_the_formula(reciprocal):
    """One layer, head by head: heads 0 and 1 real with psi, heads 2 and 3 without it at 2.2 Å."""
    contract = TestDualSpace()
    contract.arguments = contract.arguments | {"reciprocal": reciprocal}
    network, sample = contract.network(), contract.samples()[2]
    batch = contract.batch(network, [sample])
    attention, geometry = network.blocks[0].attention, network.geometry(batch)
    x = torch.randn(len(sample["z"]), 16, dtype=torch.float64)
    seen = []
    attention.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    attention.mix(x, geometry)
    q, k, v = (p(x).unflatten(1, (4, 4)) for p in map(attention.get_submodule, PROJECTIONS))
    rho = attention.inverse_square_sigma(q) * 1.4**2
    a = -0.5 * torch.cat([rho[:, :2] / 1.4**2, 1 / (2.2**2 * rho[:, 2:])], 1)
    pos, cell = sample["pos"], sample["cell"][0]
    alpha, beta = reference.image_sums(
        pos, cell, a, reference.sphere_images(pos, cell, 22.0),
        spacing=attention.spacing, width=attention.width, count=12,
    )  # fmt: skip
    if reciprocal == "published":
        m = reference.box_images(torch.tensor([2, 2, 2])).double()
        waves = 2 * math.pi * m @ torch.linalg.inv(cell).T
        cosine = torch.cos((pos[None] - pos[:, None]) @ waves.T)
        decay = torch.exp(waves.square().sum(-1) / (4 * a[:, 2:, None]))
        total = torch.einsum("ijm,ihm->ijh", cosine, decay)
        alpha[..., 2:] = total.log() + 1.5 * (-math.pi / a[:, None, 2:]).log()
        alpha[..., 2:] -= torch.linalg.det(cell).abs().log()
    weight = torch.cat([attention.radial_weight, torch.zeros(2, 4, 12, dtype=torch.float64)])
    y, _ = reference.pair_attention(q, k, v, alpha, beta, weight)
    assert (seen[0] - y.flatten(1)).abs().max() < 1e-11


@pytest.mark.parametrize("reciprocal", RECIPROCAL)
def test_gradients_reach_positions_and_cell(reciprocal):
    contract = TestCrystalformer()
    contract.arguments = contract.arguments | {"reciprocal": reciprocal}
    network = contract.network()
    batch = contract.batch(network, contract.samples())
    batch.pos.requires_grad_()
    batch.cell.requires_grad_()
    forces, stress = torch.autograd.grad(network(batch)[:, 0].sum(), (batch.pos, batch.cell))
    assert forces.abs().max() > 1e-6 and stress.abs().max() > 1e-6
    total = torch.zeros(batch.num_graphs, 3, dtype=torch.float64).index_add(0, batch.batch, forces)
    assert total.abs().max() < 1e-12  # translation invariance: the forces of a crystal sum to zero


def test_moments_are_scaled_once_in_training_by_all_atoms_of_a_row():
    sizes = []
    for symmetry in (0.0, 1e-6):
        torch.manual_seed(1)
        network = Crystalformer(**TestAngularMoments.arguments).double().eval()
        samples = [rutile_supercell(), *TestAngularMoments().samples()]
        batch = collate(samples, network.image_rule(1e-12, symmetry))
        network(batch)
        moments = [block.attention.moments for block in network.blocks]
        assert not any(one.fitted for one in moments)
        network.train()(batch)
        sizes.append([one.size.clone() for one in moments])
        network(collate(samples[1:], network.image_rule(1e-12)))
        assert all(torch.equal(one.size, was) for one, was in zip(moments, sizes[-1], strict=True))
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0, atol=1e-12)
    assert all(size.ne(1).all() for size in sizes[0])


def test_degrees_that_all_sites_are_too_symmetric_for_are_not_blown_up():
    network = Crystalformer(**TestAngularMoments.arguments).double().train()
    salt = tensors_from_arrays(
        [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]],
        [[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], torch.float64,
    )  # fmt: skip
    network(collate([salt], network.image_rule(1e-6)))
    scale = network.blocks[0].attention.moments.size
    assert scale[0] != 1 and scale[1:].eq(1).all()


def test_a_batch_without_harmonics_is_refused():
    network = Crystalformer(**TestAngularMoments.arguments)
    batch = collate([rutile_supercell()], ImageRule(6.0, symmetry=1e-3))
    with pytest.raises(ValueError, match="no spherical harmonics up to degree 3"):
        network(batch)


def test_forces_of_an_angular_network_are_its_derivatives():
    contract = TestAngularMoments()
    network, sample = contract.network(), contract.samples()[2]
    rule = network.image_rule(1e-9)

    batch = collate([sample], rule)
    assert rule.degree == 3 and batch.harmonics is None

    def energy(pos):
        return network(dataclasses.replace(batch, pos=pos))[0, 0]

    pos = sample["pos"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(pos), pos)
    step = torch.zeros_like(pos)
    step[1, 2] = 1e-4
    with torch.no_grad():
        slope = (energy(pos + step) - energy(pos - step)) / 2e-4
    assert gradient[1, 2].item() == pytest.approx(slope.item(), rel=1e-6)

    with pytest.raises(ValueError, match="published_r2"):
        Crystalformer(summation="exact")
    with pytest.raises(ValueError, match="none, published, converged"):
        Crystalformer(reciprocal="dual")
    with pytest.raises(ValueError, match="num_heads=3 is odd"):
        Crystalformer(dim=12, num_heads=3, reciprocal="published")
    with pytest.raises(ValueError, match="one_hot, properties"):
        Crystalformer(element_features="magpie")
    with pytest.raises(ValueError, match="multiple of num_heads"):
        Crystalformer(dim=10, num_heads=4)
    with pytest.raises(ValueError, match="num_blocks=0: expected at least 1"):
        Crystalformer(num_blocks=0)
    for wrong in (
        {"num_radial": -1},
        {"radial_max": 0.0},
        {"radial_width": 0.0},
    ):
        with pytest.raises(ValueError, match="num_radial must be at least 0, radial_max"):
            Crystalformer(**wrong)


def test_element_properties_are_finite_and_distinct():
    table = element_features("properties")
    assert table.shape[0] == 98 and table.isfinite().all()
    assert torch.cdist(table, table).add(torch.eye(98)).min() > 1e-3
    assert table.square().sum(-1).mean() == pytest.approx(1)


@cache
def golden():
    return {name: torch.as_tensor(array) for name, array in np.load(GOLDEN).items()}


def golden_batch(network):
    data = golden()
    ends = data["sizes"].cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    items = [
        {"z": data["Z"][a:b], "pos": data["pos"][a:b], "cell": data["lattice"][n : n + 1]}
        for n, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]
    return collate(items, network.image_rule(1e-17))


def golden_network(mode):
    state = {name[2:]: tensor for name, tensor in golden().items() if name.startswith("w/")}
    return from_reference_state(state, mode).eval()


@pytest.mark.parametrize("mode", SUMMATIONS)
def test_golden_outputs(mode):
    network = golden_network(mode)
    output = network(golden_batch(network))[:, 0]
    assert (output - golden()[f"out_{MODES[mode]}"]).abs().max() <= 1e-10
    if mode == "published_r2":
        assert (output - golden()["out_R2_refcode"]).abs().max() <= 1e-10


@pytest.mark.parametrize("mode", ["published_r2", "converged"])
def test_golden_captures(mode):
    network, data = golden_network(mode), golden()
    captured = {}
    for layer, block in enumerate(network.blocks):
        attention = block.attention
        attention.out_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: captured.update({f"attn_y_l{layer}": args[0]})
        )
        attention.q_proj.register_forward_hook(
            lambda module, _, q, layer=layer, attention=attention: captured.update(
                {f"sigma_l{layer}": attention.inverse_square_sigma(q.view(-1, 4, 8)).rsqrt()}
            )
        )
        block.register_forward_hook(
            lambda _, __, x, layer=layer: captured.update({f"x_l{layer}": x})
        )
    network.embedding.register_forward_hook(lambda _, __, x: captured.update(x0=x))
    network.head.register_forward_pre_hook(lambda _, args: captured.update(pooled=args[0]))
    network(golden_batch(network))
    assert len(captured) == 8
    for name, value in captured.items():
        expected = data[f"cap_{MODES[mode]}/{name}"]
        assert (value - expected).abs().max() <= 1e-10, name


def test_golden_gradients():
    """Every parameter gradient of the mean absolute error, fixed range R = 2."""
    network, data = golden_network("published_r2"), golden()
    loss = (network(golden_batch(network))[:, 0] - data["target"]).abs().mean()
    assert (loss - data["loss_R2_refcode"]).abs() <= 1e-10
    loss.backward()
    gradients = {name[8:]: g for name, g in data.items() if name.startswith("grad_R2/")}
    # The gradients in the reference's naming go through the importer as if they were weights.
    filler = {name: w for name, w in golden_named("w/").items() if name not in gradients}
    expected = dict(from_reference_state(gradients | filler).named_parameters())
    checked = 0
    for name, parameter in network.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-10, name
        checked += parameter.numel()
    assert checked == sum(p.numel() for p in network.parameters())


def golden_named(prefix):
    return {name[len(prefix) :]: t for name, t in golden().items() if name.startswith(prefix)}


def test_golden_in_single_precision():
    network = golden_network("converged").float()
    output = network(golden_batch(network).to(dtype=torch.float32))[:, 0]
    assert (output - golden()["out_converged"]).abs().max() <= 2e-6


def test_reference_weights_that_lack_a_tensor_are_refused():
    state = golden_named("w/")
    del state["mlp.0.weight"]
    with pytest.raises(KeyError, match="mlp.0.weight"):
        from_reference_state(state)
