"""Invariants of moments; the network around them is tested in test_crystalformer.py."""

import pytest
import torch

from matattn.models.attention_moments import AttentionMoments


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = AttentionMoments(dim=5, num_heads=3, num_radial=4, channels=2, degree=2).double().eval()
    made.scale.copy_(torch.tensor([1.0, 2.0, 0.5]))
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


def test_outputs_grow_no_faster_than_moments(layer):
    moments = torch.randn(7, 3, 2, 9, dtype=torch.float64)
    one, large = (layer(factor * moments) - layer.output.bias for factor in (1e6, 1e9))
    assert torch.allclose(large, 1000 * one, rtol=1e-4)


def test_a_closed_gate_removes_its_head(layer):
    moments = torch.randn(7, 3, 2, 9, dtype=torch.float64)
    gate = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    other = moments.clone()
    other[:, 1] += 1
    assert torch.equal(layer(moments, head_gate=gate), layer(other, head_gate=gate))
    assert not torch.allclose(layer(moments), layer(other))
