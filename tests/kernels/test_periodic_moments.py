"""Moments of the attention against brute-force sums and the reference, in every backend."""

import numpy as np
import pytest
import torch

from matattn.kernels import periodic_attention as package
from matattn.kernels.periodic_attention import periodic_attention, periodic_moments, reference

RADIAL = {"spacing": 0.5, "width": 0.4}
HERE = (torch.device("cpu"), torch.float64)
BACKENDS = [name for name, backend in package.BACKENDS.items() if not backend.refuses(*HERE)]
SMALL: dict = {}
LEAST = {"atoms": 1, "channels": 1, "functions": 1, "count": 0}
PUBLISHED = {"heads": 8, "dim": 16, "count": 40, "functions": 16}  # has code of its own
ODD = {"heads": 9, "channels": 3, "functions": 7}
NAMES = ("q", "k", "v", "a", "weight", "u", "u_weight", "distance", "table")


def problem(atoms=5, heads=3, dim=4, channels=2, functions=5, count=9, seed=0, dtype=None):
    """Inputs of one crystal, and its images: a random cell, all images of a box."""
    random = np.random.default_rng(seed)
    cell = 3.5 * np.eye(3) + 0.4 * random.normal(size=(3, 3))
    pos = random.random((atoms, 3)) @ cell
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    vectors = pos[None, :, None] + images @ cell - pos[:, None, None]
    distance = np.linalg.norm(vectors, axis=-1)
    shapes = {
        "q": (atoms, heads, dim), "k": (atoms, heads, dim), "v": (atoms, heads, dim),
        "a": (atoms, heads), "weight": (heads, dim, count), "u": (atoms, heads, channels),
        "u_weight": (heads, channels, count),
    }  # fmt: skip
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
    arrays["a"] = -0.2 - 0.1 * random.random((atoms, heads))
    arrays["distance"] = distance.ravel()
    arrays["table"] = random.normal(size=(distance.size, functions))
    tensors = {name: torch.tensor(array, dtype=dtype or torch.float64) for name, array in
               arrays.items()}  # fmt: skip
    source = torch.arange(atoms).repeat_interleave(len(images)).repeat(atoms)
    row_ptr = torch.arange(atoms + 1) * atoms * len(images)
    return tensors, source, row_ptr


def moments(tensors, source, row_ptr, backend="reference", bias=None):
    t = tensors
    return periodic_moments(
        t["q"], t["k"], t["v"], t["a"], t["weight"], t["u"], t["u_weight"], t["distance"], source,
        row_ptr, t["table"], **RADIAL, bias=bias, backend=backend,
    )  # fmt: skip


def brute_force(tensors, source, row_ptr):
    """M of the definition, atom by atom and head by head."""
    t = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    atoms, heads, channels = t["u"].shape
    centers = np.arange(1, t["weight"].shape[-1] + 1) * RADIAL["spacing"]
    m = np.zeros((atoms, heads, channels, t["table"].shape[1]))
    for i in range(atoms):
        mine = slice(int(row_ptr[i]), int(row_ptr[i + 1]))
        j, d, f = source[mine].numpy(), t["distance"][mine], t["table"][mine]
        basis = np.exp(-((d[:, None] - centers) ** 2) / (2 * RADIAL["width"] ** 2))
        for h in range(heads):
            logit = t["k"][j, h] @ t["q"][i, h] / np.sqrt(t["q"].shape[-1]) + t["a"][i, h] * d**2
            p = np.exp(logit - logit.max())
            p /= p.sum()
            m[i, h] = (p[:, None] * (t["u"][j, h] + basis @ t["u_weight"][h].T)).T @ f
    return torch.tensor(m)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [SMALL, LEAST, PUBLISHED, ODD])
def test_it_is_the_definition(backend, sizes):
    given = problem(**sizes)
    y, m = moments(*given, backend=backend)
    assert (m - brute_force(*given)).abs().max() < 1e-12
    t, source, row_ptr = given
    alone = periodic_attention(
        *(t[name] for name in ("q", "k", "v", "a", "weight", "distance")), source, row_ptr,
        **RADIAL, backend=backend,
    )  # fmt: skip
    assert torch.allclose(y, alone, atol=1e-13)


def gradients(tensors, source, row_ptr, backend, names=NAMES, bias=None):
    leaves = {n: t.clone().requires_grad_(n in names) for n, t in tensors.items()}
    y, m = moments(leaves, source, row_ptr, backend, bias)
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * x).sum()
        for x in (y, m)
    )
    return torch.autograd.grad(loss, [leaves[name] for name in names])


def plain_gradients(tensors, source, row_ptr, bias=None):
    """Those of autograd through the formula."""
    leaves = {n: t.double().requires_grad_() for n, t in tensors.items()}
    u, weight, table = leaves["u"], leaves["u_weight"], leaves["table"]
    y, _, m = reference.neighbor_attention(
        *(leaves[n] for n in ("q", "k", "v", "a", "weight", "distance")), source, row_ptr, bias,
        *RADIAL.values(), reference.Moments(u, weight, table),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (torch.randn(x.shape, generator=generator, dtype=torch.float64) * x).sum() for x in (y, m)
    )
    return torch.autograd.grad(loss, [leaves[name] for name in NAMES])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [SMALL, PUBLISHED, ODD])
def test_gradients_are_those_of_the_formula(backend, sizes):
    given = problem(**sizes)
    bias = torch.randn(
        len(given[1]), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    expected = plain_gradients(*given, bias)
    for name, ours, theirs in zip(
        NAMES, gradients(*given, backend, bias=bias), expected, strict=True
    ):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-12, f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_nobody_asks_for_change_nothing(backend):
    given = problem()
    names = tuple(n for n in NAMES if n not in ("distance", "table"))
    for ours, all_of_them in zip(
        gradients(*given, backend, names), gradients(*given, backend), strict=False
    ):
        assert torch.equal(ours, all_of_them)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_precision(backend):
    given = problem(atoms=6, heads=8, dim=16, count=40, functions=16)
    short = ({n: t.float() for n, t in given[0].items()}, *given[1:])
    _, m = moments(*short, backend=backend)
    exact = brute_force(*given)
    assert (m - exact).abs().max() < 2e-6 * exact.abs().max()
    for name, ours, theirs in zip(
        NAMES, gradients(*short, backend), plain_gradients(*given), strict=True
    ):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend):
    tensors, source, row_ptr = problem(atoms=2, heads=2, dim=2, functions=3, count=3)
    leaves = [tensors[name].requires_grad_() for name in NAMES]

    def loss(*values):
        y, m = moments(dict(zip(NAMES, values, strict=True)), source, row_ptr, backend)
        return y.square().sum() + m.square().sum()

    def first(*values):
        return torch.autograd.grad(loss(*values), values, create_graph=True)

    def plain(*values):
        given = dict(zip(NAMES, values, strict=True))
        y, _, m = reference.neighbor_attention(
            *(given[n] for n in ("q", "k", "v", "a", "weight", "distance")), source, row_ptr, None,
            *RADIAL.values(),
            reference.Moments(given["u"], given["u_weight"], given["table"]),
        )  # fmt: skip
        return torch.autograd.grad(y.square().sum() + m.square().sum(), values, create_graph=True)

    weights = [torch.randn_like(leaf) for leaf in leaves]
    ours, theirs = (
        torch.autograd.grad(sum((w * g).sum() for w, g in zip(weights, f(*leaves), strict=True)),
                            leaves)
        for f in (first, plain)
    )  # fmt: skip
    for name, one, other in zip(NAMES, ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9), name


def test_wrong_shapes_are_named():
    tensors, source, row_ptr = problem()
    for name in ("u", "u_weight", "table"):
        wrong = tensors | {name: tensors[name][:-1]}
        with pytest.raises(ValueError, match=f"periodic_attention: {name} has shape"):
            moments(wrong, source, row_ptr)
