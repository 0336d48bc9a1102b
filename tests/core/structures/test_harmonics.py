import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from matattn.structures.harmonics import MOST, count, of_edges, of_vectors


def directions(number, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(number, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("degree", range(1, MOST + 1))
def test_addition_theorem(degree):
    """Their products are Legendre polynomials of the angle, for every l."""
    one, other = directions(50), directions(50, 1)
    cosine = (one * other).sum(1)
    products = of_vectors(3.1 * one, MOST) * of_vectors(0.2 * other, MOST)
    mine = slice(count(degree - 1), count(degree))
    assert np.abs(products[:, mine].sum(1) - eval_legendre(degree, cosine)).max() < 1e-14


def test_they_are_orthogonal_over_the_sphere():
    x, weights = np.polynomial.legendre.leggauss(8)
    angle = np.arange(16) * 2 * np.pi / 16
    z, phi = np.meshgrid(x, angle, indexing="ij")
    r = np.sqrt(1 - z**2)
    points = np.stack([r * np.cos(phi), r * np.sin(phi), z], -1).reshape(-1, 3)
    values = of_vectors(points, MOST)
    product = (values * np.repeat(weights / 32, 16)[:, None]).T @ values
    degrees = np.repeat([1, 2, 3], [3, 5, 7])
    assert np.abs(product - np.diag(1 / (2 * degrees + 1))).max() < 1e-14


def test_torch_gives_the_same_and_its_derivatives_are_exact():
    vectors = torch.tensor(2.5 * directions(4), requires_grad=True)
    found = of_edges(vectors, vectors.norm(dim=1), MOST)
    assert np.abs(found.detach().numpy() - of_vectors(vectors.detach().numpy(), MOST)).max() < 1e-15
    assert torch.autograd.gradcheck(lambda v: of_edges(v, v.norm(dim=1), MOST), vectors)


def test_the_atom_itself_has_none():
    assert not of_vectors(np.zeros((1, 3)), MOST).any()
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    found = of_edges(zero, torch.zeros(1, dtype=torch.float64), MOST)
    assert not found.any()
