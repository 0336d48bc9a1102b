"""Probes of attention, and what records say."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from matattn.attention import AttentionLayer, AttentionRecord, LayerProbe, probed


def record():
    """Target 0 attends evenly to two sources, target 1 to one; two heads, the second reversed."""
    weight = np.array([[[0.5, 0.5, 1.0, 0.0], [0.0, 1.0, 0.5, 0.5]]])
    return AttentionRecord(
        target=np.array([0, 0, 1, 1]),
        source=np.array([0, 1, 0, 1]),
        length=np.array([1.0, 3.0, 2.0, 5.0]),
        weight=weight,
        unit="Å",
        image=np.zeros((4, 3)),
    )


def test_entropy_and_range_by_hand():
    assert record().entropy() == pytest.approx(np.full((1, 2), math.log(2) / 2))
    assert record().effective_range() == pytest.approx(np.array([[2.0, 3.25]]))


def test_weights_by_length():
    sums, pairs = record().by_length(np.array([0.0, 2.5, 4.0]))  # one pair is longer
    assert pairs.tolist() == [2, 1]
    assert sums.tolist() == [[[1.5, 0.5], [0.5, 1.0]]]


def test_a_part_keeps_what_belongs_together():
    part = record().part(np.array([True, False, False, True]))
    assert part.source.tolist() == [0, 1] and part.length.tolist() == [1, 5]
    assert part.weight.tolist() == [[[0.5, 0.0], [0.0, 0.5]]]
    assert part.image.shape == (2, 3) and part.size is None and part.unit == "Å"


def test_probes_leave_with_the_block():
    module = nn.Linear(4, 4)
    module.probe = None
    layer = AttentionLayer.of(module, module.weight, 2)
    assert layer.projection.shape == (2, 2, 4)
    network, probe = SimpleNamespace(attention_layers=lambda: [layer]), LayerProbe()
    with pytest.raises(KeyError), probed(network, [probe]):
        assert module.probe is probe
        raise KeyError
    assert module.probe is None
    with pytest.raises(ValueError), probed(network, []):  # one a layer
        pass


def test_removed_and_replaced_weights():
    weights, values = torch.full((3, 2), 0.5), torch.ones(3, 2, 4)
    probe = LayerProbe(edge_scale=torch.tensor([1.0, 0.0, 2.0]))
    assert torch.equal(probe.weigh(weights, values)[:, 0], torch.tensor([0.5, 0.0, 1.0]))
    other = torch.rand(3, 2, dtype=torch.float64)
    probe = LayerProbe(weights=other, projection=torch.ones(2, 4, 9))
    assert torch.equal(probe.weigh(weights, values), other.float()) and probe.seen is not None
    assert torch.allclose(probe.seen_size, other.float() * 4 * 3)  # a sum of 4, a norm of 9 ones


def test_biases_of_probe_and_network_add_up():
    bias = torch.tensor([1.0, 2.0])
    assert LayerProbe().biased(bias) is bias and LayerProbe().biased(None) is None
    probe = LayerProbe(edge_bias=torch.tensor([0.0, -math.inf]))
    assert probe.biased(None) is probe.edge_bias
    assert probe.biased(bias).tolist() == [1.0, -math.inf]
    assert probe.biased(bias[:, None].expand(2, 3)).tolist() == [[1.0] * 3, [-math.inf] * 3]


def test_meshes_have_too_many_weights_to_replace():
    with pytest.raises(ValueError, match="set edge_bias or edge_scale instead"):
        LayerProbe(weights=torch.ones(1, 1)).shares(torch.ones(1, 1, 1), slice(0, 1))


def test_mixing_is_the_product_of_its_factors():
    """Two meshes of 2 and 3 points; the record has the row of one point of each."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(5, 2, 4, generator=generator)
    matrices = [[torch.rand(2, n, 2, generator=generator), torch.rand(2, 2, n, generator=generator)]
                for n in (2, 3)]  # fmt: skip
    probe = LayerProbe(rows=torch.tensor([1, 2]), head_gate=torch.tensor([1.0, 0.5]))
    out = probe.mix(values, torch.tensor([0, 2, 5]), lambda mesh, points: matrices[mesh])
    for mesh, points in enumerate((slice(0, 2), slice(2, 5))):
        whole = matrices[mesh][0] @ matrices[mesh][1]
        expected = torch.einsum("hij,jhd->ihd", whole, values[points])
        assert torch.allclose(out[points], expected * torch.tensor([[[1.0], [0.5]]]))
        row = int(probe.rows[mesh]) - points.start
        assert torch.allclose(probe.seen[points], whole[:, row].T)
