"""Parts that networks should agree in."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from matattn.models.coulgat import CoulGAT
from matattn.workflows.structures import standard_model
from matattn.workflows.structures.explained import prepare


def test_laws_that_never_moved_are_not_identified(on_molecules):
    """Three untrained networks: every constant stands where it began."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(CoulGAT(dim=16, num_heads=2, num_blocks=2, ffn_dim=16, elements=[1, 6, 8]))
    subjects = [on_molecules(n) for n in networks]
    same = np.array([[0, 1], [0, 1]])
    rows = standard_model.law_table(networks, subjects[0], [same, same])
    assert len(rows) == 2 * 2 * (3 * 9 + 3)
    assert {row["verdict"] for row in rows} == {"not identified"}
    assert {row["value"] for row in rows if row["constant"] == "p"} == {1.0}
    for network in networks:
        network.blocks[0].conv.law.pairs.data[:, :, 1] = 0.4
    rows = standard_model.law_table(networks, subjects[0], [same, same])
    moved = [row for row in rows if row["verdict"] == "identified"]
    assert len(moved) == 2 * 9 and {row["constant"] for row in moved} == {"p"}
    rows = standard_model.law_table(networks[:2], subjects[0], [same])
    assert {row["verdict"] for row in rows} == {"unknown: fewer than three networks"}


def test_heads_in_another_order_are_matched_and_features_agree(on_molecules, coulgat):
    network = coulgat()
    other = copy.deepcopy(network)
    conv, swap = other.blocks[0].conv, torch.arange(16).view(2, 8).flip(0).flatten()
    with torch.no_grad():
        conv.lin.weight.copy_(conv.lin.weight[swap])
        conv.bias.copy_(conv.bias.flip(0))
        conv.att.copy_(conv.att.flip(1))
        conv.law.pairs.copy_(conv.law.pairs.flip(-1))
        conv.law.self_term.copy_(conv.law.self_term.flip(-1))
        conv.law.first_range.copy_(conv.law.first_range.flip(0))
        columns = torch.cat([swap, torch.tensor([17, 16])])
        other.blocks[0].out_proj.weight.copy_(other.blocks[0].out_proj.weight[:, columns])
    one, two = (on_molecules(n) for n in (network, other))
    torch.testing.assert_close(one[0].values(), two[0].values())
    found = standard_model.compare(one, two)
    assert found["matched_heads"] == [[1, 0], [0, 1]]
    assert np.array(found["cosine"]) == pytest.approx(np.ones((2, 2)))
    assert np.diag(found["cka"]) == pytest.approx(np.ones(2))


def test_effective_attention_is_a_share(crystals, coulgat, predictor):
    subjects = list(prepare(predictor(coulgat(), "crystals"), crystals()))
    species, table = standard_model.effective_attention(subjects)
    assert species == ["C", "O", "Na", "Cl"] and table.shape == (2, 2, 4, 4)
    assert table.sum(-1) == pytest.approx(np.ones((2, 2, 4)), rel=1e-5)
    assert (table[..., :2, 2:] == 0).all()  # C and O stand in a crystal of their own


def test_first_layer_of_node_features_is_the_networks_own(on_molecules, coulgat):
    network = coulgat()
    subjects = on_molecules(network)
    found = standard_model.node_features(subjects)
    block = network.blocks[0]
    with torch.no_grad():
        x = block.norm1(network.embedding.weight.T)  # [5 elements, dim]
        value = block.conv.lin(x).view(5, 2, 8) + block.conv.bias
        expected = torch.einsum("thc,shc->hts", block.conv.att, value)[:, :3, :3]
    assert found["species"] == ["H", "C", "O"]
    assert np.array(found["table"])[0] == pytest.approx(expected.numpy(), abs=1e-6)
