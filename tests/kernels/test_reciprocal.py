"""Reciprocal-space heads against golden numbers, brute-force sums and exact identities.

Needs torch, numpy, hypothesis and pytest only.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matattn.kernels.periodic_attention import reference
from matattn.kernels.periodic_attention.reciprocal import (
    SUMS,
    BoxSums,
    LatticeSums,
    periodic_sums,
    reciprocal_attention,
    reduction,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "crystalformer"
CRYSTALS = ("po_sc", "nacl_conv", "zno_wurtzite", "triclinic6", "skew_elongated10")


@cache
def golden(crystal):
    with np.load(GOLDEN / f"core_{crystal}.npz") as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files}


def published(pos, cell, variance):
    return BoxSums(pos[None], cell[None])(variance[None])[0]


def converged(pos, cell, variance):
    return LatticeSums(pos, cell)(variance)


FUNCTIONS = {"published": published, "converged": converged}


def real_sum(pos, basis, variance):
    """log sum_n exp(-d^2 / 2 sigma^2), all images that count for any pair: [i, H, j]."""
    frac = pos @ torch.linalg.inv(basis)
    pos = (frac - frac.floor()) @ basis
    farthest = (basis.square().sum() / 4 * 3).item()  # (Å^2) no pair's nearest image is beyond
    cutoff = math.sqrt(farthest + 81 * variance.max().item())
    images = reference.sphere_images(pos, basis, cutoff)
    alpha, _ = reference.image_sums(
        pos, basis, -0.5 / variance, images, spacing=1.0, width=1.0, count=0
    )
    return alpha.transpose(1, 2)


def reciprocal_sum(pos, basis, variance):
    """The formula of the paper as it stands, all wave vectors that count: [i, H, j]."""
    limit = 9 / variance.min().sqrt()
    m = reference.box_images(torch.ceil(limit * basis.norm(dim=1) / (2 * math.pi)))
    waves = 2 * math.pi * m.double() @ torch.linalg.inv(basis).T
    waves = waves[waves.norm(dim=1) <= limit]
    weights = torch.exp(-0.5 * variance[..., None] * waves.square().sum(-1))  # [i, H, m]
    cosine = torch.cos((pos[None] - pos[:, None]) @ waves.T)  # [i, j, m]
    total = torch.einsum("ihm,ijm->ihj", weights, cosine)
    scale = 1.5 * (2 * math.pi * variance).log() - torch.linalg.det(basis).abs().log()
    return total.clamp_min(0).log() + scale[..., None]


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_golden(crystal):
    """Both modes in float64; in float32 the error, weighted with the attention of equal logits."""
    data = golden(crystal)
    pos, cell, variance = data["pos"], data["lattice"], data["sigma_bar"].square()
    for mode, name in (("published", "alpha_reci_M2"), ("converged", "alpha_reci_converged")):
        expected = data[name].transpose(1, 2)
        alpha = FUNCTIONS[mode](pos, cell, variance)
        assert (alpha - expected).abs().max() < 1e-12
        single = FUNCTIONS[mode](pos.float(), cell.float(), variance.float())
        weighted = (single - expected).abs() * expected.softmax(-1)
        assert weighted.sum(-1).max() < 2e-6
    assert (published(pos, cell, variance) - data["alpha_reci_M2_refcode"].mT).abs().max() < 1e-12


@st.composite
def crystals(draw):
    """A plain cell of 15 Å^3 per atom, atoms anywhere in it, and a worse cell of that lattice."""
    elongation = draw(st.sampled_from([1.0, 1.5, 4.0, 20.0, 100.0]))
    atoms = draw(st.integers(1, 12 if elongation < 20 else 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    basis = np.diag([1, 1, draw(st.sampled_from([elongation, 1 / elongation]))])
    basis = basis @ (np.eye(3) + 0.15 * generator.standard_normal((3, 3)))
    basis = basis * np.array([[1.0], [draw(st.floats(1.0, 1.4))], [1.0]])
    basis *= np.cbrt(15 * atoms / abs(np.linalg.det(basis)))
    upper = np.eye(3, dtype=int)
    upper[np.triu_indices(3, 1)] = draw(st.tuples(*[st.integers(-3, 3)] * 3))
    lower = np.eye(3, dtype=int)
    lower[np.tril_indices(3, -1)] = draw(st.tuples(*[st.integers(-2, 2)] * 3))
    cell = upper @ lower @ basis
    if draw(st.booleans()):
        cell = cell[[1, 0, 2]]  # left-handed to right-handed or back
    pos = (generator.random((atoms, 3)) * 3 - 1) @ basis
    return tuple(map(torch.from_numpy, (pos, basis, cell)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(crystals(), st.sampled_from([0.2, 0.35, 0.5, 0.8]))
def test_real_sum_is_reciprocal_sum(crystal, ratio):
    """sigma is given in units of V^(1/3); the crossover of a cube is at 0.40."""
    pos, basis, cell = crystal
    volume = torch.linalg.det(basis).abs()
    sigma = ratio * volume ** (1 / 3) * torch.linspace(0.8, 1.25, 3, dtype=torch.float64)
    variance = sigma.square().repeat(len(pos), 1)
    alpha = converged(pos, cell, variance)
    assert (alpha - real_sum(pos, basis, variance)).abs().max() < 1e-10
    fourier = reciprocal_sum(pos, basis, variance)
    least_cancellation = alpha > alpha.amax(-1, keepdim=True) - 6
    assert (alpha - fourier)[least_cancellation].abs().max() < 1e-10


@pytest.mark.parametrize("ratio", [1, 4, 100])
@pytest.mark.parametrize("sigma", [1.556, 3.0, 7.0, 20.0, 60.0])
def test_supercell_of_forty_atoms(ratio, sigma):
    """The images of an atom are the images of its two copies in a doubled cell."""
    generator = np.random.default_rng(ratio)
    cell = np.eye(3) + 0.2 * generator.standard_normal((3, 3))
    cell[2] *= ratio
    cell *= np.cbrt(15 * 20 / abs(np.linalg.det(cell)))
    pos = torch.from_numpy(generator.random((20, 3)) @ cell)
    cell = torch.from_numpy(cell)
    variance = torch.full((20, 1), sigma**2, dtype=torch.float64)
    doubled = cell * torch.tensor([[1], [2], [1]])
    alpha = converged(torch.cat([pos, pos + cell[1]]), doubled, variance.repeat(2, 1))
    alpha = torch.logaddexp(alpha[..., :20], alpha[..., 20:])
    assert (alpha - converged(pos, cell, variance).repeat(2, 1, 1)).abs().max() < 1e-10


def test_sides_agree_at_their_crossover():
    data = golden("triclinic6")
    sums = LatticeSums(data["pos"], data["lattice"])
    edges = sums.crossover.repeat(6, 1)
    below, above = sums((edges * (1 - 1e-13)).square()), sums((edges * (1 + 1e-13)).square())
    assert {r for r, _ in sums.tables} == {0, 1, 2, 3}
    assert (below - above).abs().max() < 3e-12


@pytest.mark.parametrize("mode", SUMS)
def test_handedness_does_not_matter(mode):
    data = golden("triclinic6")
    pos, cell, variance = data["pos"], data["lattice"], data["sigma_bar"].square()
    expected = FUNCTIONS[mode](pos, cell, variance)
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    for other in ((pos * mirror, cell * mirror), (pos, cell[[1, 0, 2]])):
        assert (FUNCTIONS[mode](*other, variance) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("mode", SUMS)
def test_atoms_may_stand_in_any_cell(mode):
    data = golden("skew_elongated10")
    pos, cell, variance = data["pos"], data["lattice"], data["sigma_bar"].square()
    images = torch.from_numpy(np.random.default_rng(0).integers(-9, 10, pos.shape)).double()
    moved = FUNCTIONS[mode](pos + images @ cell, cell, variance)
    expected = FUNCTIONS[mode](pos, cell, variance)
    kept = expected > expected.amin() + 1 if mode == "published" else slice(None)
    assert (moved - expected)[kept].abs().max() < 1e-10


def test_clamped_sums_have_no_gradient():
    data = golden("skew_elongated10")
    pos, cell = (data[name].clone().requires_grad_() for name in ("pos", "lattice"))
    variance = data["sigma_bar"].square().requires_grad_()
    alpha = published(pos, cell.detach(), variance)
    clamped = (data["reci_rawsum_M2"] < 1e-6).transpose(1, 2)
    assert clamped.sum() == 106
    grad_pos, grad_variance = torch.autograd.grad(alpha[clamped].sum(), (pos, variance))
    assert grad_pos.abs().max() == 0
    prefactor = 1.5 / variance * clamped.sum(-1)
    assert (grad_variance - prefactor).abs().max() < 1e-12


@pytest.mark.parametrize("mode", SUMS)
def test_gradients(mode):
    """First and second derivatives by widths, positions and cell; every r of ``LatticeSums``."""
    generator = torch.Generator().manual_seed(1)
    cell = torch.diag(torch.tensor([2.5, 4.0, 6.5], dtype=torch.float64))
    cell = cell + 0.3 * torch.rand(3, 3, dtype=torch.float64, generator=generator)
    pos = torch.rand(2, 3, dtype=torch.float64, generator=generator) @ cell
    variance = torch.tensor([[0.8, 1.3], [2.0, 3.2]], dtype=torch.float64).square()
    if mode == "converged":
        sums = LatticeSums(pos, cell)
        sums(variance)
        assert {r for r, _ in sums.tables} == {0, 1, 2, 3}
    inputs = [t.requires_grad_() for t in (pos, cell, variance)]
    assert torch.autograd.gradcheck(FUNCTIONS[mode], inputs)
    assert torch.autograd.gradgradcheck(FUNCTIONS[mode], inputs, atol=1e-4)


@pytest.mark.parametrize("mode", SUMS)
def test_attention_over_a_batch(mode):
    """Crystals of several sizes, two of them equal: the dense formula crystal by crystal."""
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 1, 4, 3)
    batch = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    cell = 4 * torch.eye(3, dtype=torch.float64) + 0.5 * random(generator, 4, 3, 3)
    pos = 4 * random(generator, len(batch), 3)
    q, k, v = random(generator, 3, len(batch), 2, 5)
    variance = 2.5 + 3 * random(generator, len(batch), 2).square()
    y = reciprocal_attention(q, k, v, variance, periodic_sums(pos, cell, batch, mode))
    for crystal in range(4):
        own = batch == crystal
        alpha = FUNCTIONS[mode](pos[own], cell[crystal], variance[own]).transpose(1, 2)
        expected, _ = reference.pair_attention(
            q[own], k[own], v[own], alpha, alpha.new_empty(*alpha.shape, 0), q.new_empty(2, 5, 0)
        )
        assert (y[own] - expected).abs().max() < 1e-13
    assert torch.equal(y[batch == 1], v[batch == 1])  # a single atom attends to itself


def random(generator, *shape):
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def test_reduction_finds_the_short_basis():
    """Body-centred cubic from a bad cell: three of its shortest vectors."""
    basis = 3 * (np.full((3, 3), 0.5) - np.eye(3))
    worse = np.array([[1, 7, -3], [0, 1, 5], [0, 0, 1]]) @ basis
    found = reduction(worse)
    assert abs(np.linalg.det(found)) == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.norm(found @ worse, axis=1), 1.5 * math.sqrt(3))


@pytest.mark.parametrize("mode", SUMS)
def test_widths_that_are_not_numbers_stay_so(mode):
    """A training run that diverges is told by its loss."""
    data = golden("triclinic6")
    variance = torch.full((6, 2), math.nan, dtype=torch.float64)
    assert FUNCTIONS[mode](data["pos"], data["lattice"], variance).isnan().all()
