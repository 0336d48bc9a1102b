"""Periodic attention on drawn crystals: every backend, output and all gradients, and the range."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matattn.kernels import periodic_attention as package
from matattn.kernels.periodic_attention import (
    cutoff_for_tolerance,
    periodic_attention,
    reference,
    weight_beyond,
)

HEADS, DIM, COUNT, SPACING = 8, 4, 64, 14 / 64
RADIAL = {"spacing": SPACING, "width": SPACING}
CPU = torch.device("cpu")
BACKENDS = [name for name in ("cpu", "torch")
            if package.BACKENDS[name].refuses(CPU, torch.float32) is None]  # fmt: skip
NAMES = ("q", "k", "v", "a", "weight", "pos", "cell")


def crystal(seed, atoms, elongation):
    """An oblique cell of 12 Å^3 per atom, one vector longer than the others, and atoms in it."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.eye(3, dtype=torch.float64)
    cell += 0.4 * torch.randn(3, 3, dtype=torch.float64, generator=generator)
    while torch.linalg.cond(cell) > 8:
        cell += 0.4 * torch.randn(3, 3, dtype=torch.float64, generator=generator)
    cell[2] *= elongation
    cell *= (12 * atoms / torch.linalg.det(cell).abs()) ** (1 / 3)
    frac = torch.rand(atoms, 3, dtype=torch.float64, generator=generator)
    return frac @ cell, cell, generator


def neighbors(pos, cell, cutoff):
    """Differentiable distances and the list of all images within ``cutoff`` Å."""
    images = reference.sphere_images(pos.detach(), cell.detach(), cutoff)
    vectors = pos[None, :, None] + images.to(pos) @ cell - pos[:, None, None]  # [i, j, n]
    near = vectors.detach().square().sum(-1) <= cutoff**2
    target, source, _ = near.nonzero(as_tuple=True)
    row_ptr = torch.searchsorted(target, torch.arange(len(pos) + 1))
    return reference.safe_distance(vectors[near]), source, row_ptr


def tensors(atoms, generator, scale=1.0):
    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    q, k, v = (
        scale * normal(atoms, HEADS, DIM),
        normal(atoms, HEADS, DIM),
        normal(atoms, HEADS, DIM),
    )
    sigma = 1.1 + 0.88 * torch.rand(atoms, HEADS, dtype=torch.float64, generator=generator)
    return [q, k, v, -0.5 / sigma**2, 0.1 * normal(HEADS, DIM, COUNT)]


def output_and_gradients(leaves, pos, cell, cutoff, backend):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (*leaves, pos, cell)]
    y = periodic_attention(*leaves[:5], *neighbors(*leaves[5:], cutoff), **RADIAL, backend=backend)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((weights * y).sum(), leaves)]


def assert_same(found, expected, bound, label):
    for name, value, exact in zip(("y", *NAMES), found, expected, strict=True):
        error = (value - exact).abs().max() / exact.abs().max().clamp(min=1e-3)
        assert error <= bound, f"{label}, {name}: {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1.0, 10.0, 100.0]))
def test_drawn_crystals(backend, seed, atoms, elongation):
    """Oblique cells, a/c up to 100, 1 to 40 atoms."""
    pos, cell, generator = crystal(seed, atoms, elongation)
    leaves, cutoff = tensors(atoms, generator), 5.0
    expected = output_and_gradients(leaves, pos, cell, cutoff, "reference")
    found = output_and_gradients(leaves, pos, cell, cutoff, backend)
    assert_same(found, expected, 1e-10, "float64")
    rounded = [tensor.float() for tensor in leaves]
    distance, source, row_ptr = neighbors(pos, cell, cutoff)
    single = [tensor.clone().requires_grad_() for tensor in (*rounded, distance.float())]
    exact = [tensor.double().detach().requires_grad_() for tensor in single]
    results = []
    for inputs, name in ((single, backend), (exact, "reference")):
        y = periodic_attention(*inputs, source, row_ptr, **RADIAL, backend=name)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append([y, *torch.autograd.grad((weights * y).sum(), inputs)])
    # q, k, a and distance get sums of terms that cancel (they add up to 0 for a single atom), so
    # their rounding errors are those of the terms: of go_i . v_j, up to |v| times the head's size.
    terms = DIM * leaves[2].abs().max()
    names = ("y", "q", "k", "v", "a", "weight", "distance")
    for name, value, other in zip(names, *results, strict=True):
        size = other.abs().max()
        size = size.clamp(min=1.0) if name in ("y", "v", "weight") else size.clamp(min=terms)
        error = (value - other).abs().max() / size
        assert error <= 2e-6, f"float32, {name}: {error:.1e}"


SPECIAL = {
    "one atom": (torch.zeros(1, 3), 3.0 * torch.eye(3), 9.0),
    "skewed cell of one atom": (
        torch.zeros(1, 3), torch.tensor([[3.0, 0, 0], [2.9, 1.5, 0], [2.8, 1.4, 2.5]]), 9.0),
    "isolated atom": (torch.zeros(1, 3), 100.0 * torch.eye(3), 9.0),
    "two far atoms": (torch.tensor([[0.0, 0, 0], [50, 50, 50]]), 100.0 * torch.eye(3), 9.0),
    "atoms outside the cell": (
        torch.tensor([[0.0, 0, 0], [9.0, -7.0, 21.0]]), 4.0 * torch.eye(3), 6.0),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_crystals(name, backend):
    pos, cell, cutoff = (x.double() if torch.is_tensor(x) else x for x in SPECIAL[name])
    leaves = tensors(len(pos), torch.Generator().manual_seed(0))
    expected = output_and_gradients(leaves, pos, cell, cutoff, "reference")
    found = output_and_gradients(leaves, pos, cell, cutoff, backend)
    assert_same(found, expected, 1e-10, name)
    if name == "isolated atom":  # it sees itself alone: y = v + W b(0)
        basis = reference.radial_basis(torch.zeros(1).double(), SPACING, SPACING, COUNT)[0]
        assert torch.allclose(found[0], leaves[2] + leaves[4] @ basis, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_no_atom_at_all(backend):
    leaves = [torch.empty(0, HEADS, DIM)] * 3 + [torch.empty(0, HEADS)]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, torch.ones(HEADS, DIM, COUNT))]
    nothing = torch.empty(0, dtype=torch.long)
    pointer = torch.zeros(1, dtype=torch.long)
    y, lse = periodic_attention(
        *leaves, torch.empty(0), nothing, pointer, **RADIAL, return_lse=True, backend=backend
    )
    assert y.shape == (0, HEADS, DIM) and lse.shape == (0, HEADS)
    assert torch.autograd.grad(y.sum(), leaves[4])[0].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 127, 128, 129, 640])
def test_sizes_around_the_blocks_of_the_sum(size, backend):
    """Rows of neighbours that end just before, at and after a block of 64."""
    generator = torch.Generator().manual_seed(size)
    leaves = tensors(2, generator)
    distance = torch.rand(2 * size, dtype=torch.float64, generator=generator) * 9
    source = torch.randint(2, (2 * size,), generator=generator)
    list_ = (source, torch.tensor([0, size, 2 * size]))
    results = []
    for name in (backend, "reference"):
        inputs = [tensor.clone().requires_grad_() for tensor in (*leaves, distance)]
        y = periodic_attention(*inputs, *list_, **RADIAL, backend=name)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for value, exact in zip(*results, strict=True):
        assert (value - exact).abs().max() <= 1e-11


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0.1, 8.0))
def test_what_lies_beyond_the_range_weighs_no_more_than_stated(seed, atoms, scale):
    """The neglected weight of every atom and head, from sums that go on to 1e-13."""
    pos, cell, generator = crystal(seed, atoms, 1.0)
    leaves = tensors(atoms, generator, scale)
    q, k, v, a, _ = leaves
    sigma = float((-0.5 / a).sqrt().max())
    scores = torch.einsum("ihd,jhd->ijh", q, k) / math.sqrt(DIM)
    spread = float((scores - scores.diagonal().T[:, None]).max())
    far = neighbors(pos, cell, cutoff_for_tolerance(sigma, 1e-13, spread))
    options = {**RADIAL, "return_lse": True, "backend": "torch"}
    whole_y, whole = periodic_attention(*leaves, *far, **options)
    density = atoms / float(torch.linalg.det(cell).abs())
    for tolerance in (1e-2, 1e-4, 1e-6):
        cutoff = cutoff_for_tolerance(sigma, tolerance, spread)
        near = neighbors(pos, cell, cutoff)
        part_y, part = periodic_attention(*leaves, *near, **options)
        neglected = float(-torch.expm1(part - whole).min())
        # The integral stands for the sum over images of a crystal, so it may be off by its grain.
        bound = 3 * weight_beyond(sigma, cutoff, density, spread)
        assert -1e-12 <= neglected <= bound
        values = v[far[1]] + torch.einsum(
            "ek,hdk->ehd", reference.radial_basis(far[0], SPACING, SPACING, COUNT), leaves[4]
        )
        assert (part_y - whole_y).abs().max() <= 2 * bound * values.abs().max() + 1e-12


def test_range_of_the_published_network():
    sigma = 1.4 / math.sqrt(0.5)
    assert cutoff_for_tolerance(sigma, 3e-4) == pytest.approx(7.97, abs=0.01)
    assert cutoff_for_tolerance(sigma, 1e-6) == pytest.approx(10.41, abs=0.01)
    assert cutoff_for_tolerance(sigma, 1e-6, logit_spread=5.0) == pytest.approx(12.14, abs=0.01)
    assert weight_beyond(sigma, 10.41, 0.06) == pytest.approx(3.2e-5, rel=0.1)
