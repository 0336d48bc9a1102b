"""Invariants of moments; the network around them is tested in test_crystalformer.py."""

import pytest
import torch

from matattn.models.attention_moments import AttentionMoments, _damping


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = AttentionMoments(dim=5, num_heads=3, num_radial=4, channels=2, degree=2).double().eval()
    made.size.copy_(torch.tensor([1.0, 2.0, 0.5]))
    made.fitted.fill_(True)
    return made


def test_turned_moments_have_equal_outputs(layer):
    """Any orthogonal matrix of each degree, not only those of rotations."""
    moments = torch.randn(7, 3, 2, 9, dtype=torch.float64)
    turned = [
        part @ torch.linalg.qr(torch.randn(part.shape[-1], part.shape[-1], dtype=torch.float64))[0]
        for part in moments.split([1, 3, 5], -1)
    ]
    assert torch.allclose(layer(torch.cat(turned, -1)), layer(moments), atol=1e-13)


def test_outputs_grow_as_the_logarithm_of_moments(layer):
    moments = torch.randn(7, 3, 2, 9, dtype=torch.float64)
    small, medium, large = (layer(10.0**n * moments) for n in (3, 6, 9))
    assert torch.allclose(large - medium, medium - small, atol=1e-3)
    assert large.norm() < 4 * small.norm()


def test_the_damping_is_smooth_where_its_series_ends():
    trace = torch.tensor([0.0, 1e-6, 9.99e-4, 1.001e-3, 1.0], dtype=torch.float64)
    trace.requires_grad_()
    values = _damping(trace)
    assert values[0] == 1
    assert torch.allclose(values[1:], torch.log1p(trace[1:]) / trace[1:], atol=1e-9, rtol=0)
    (slopes,) = torch.autograd.grad(values.sum(), trace)
    assert torch.allclose(slopes[:4], -0.5 + trace[:4] * 2 / 3, atol=1e-6)


def test_a_closed_gate_removes_its_head(layer):
    moments = torch.randn(7, 3, 2, 9, dtype=torch.float64)
    gate = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    other = moments.clone()
    other[:, 1] += 1
    assert torch.equal(layer(moments, head_gate=gate), layer(other, head_gate=gate))
    assert not torch.allclose(layer(moments), layer(other))
