"""What is explained: probes do what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from matattn.attention import AttentionRecord, LayerProbe, probed
from matattn.workflows.explain import heads
from matattn.workflows.structures.explained import prepare


def test_a_probe_that_does_nothing_changes_nothing(subjects):
    for subject in subjects:
        with torch.no_grad():
            plain = subject.network(subject.batch)[:, 0] * 2 + 1
            torch.testing.assert_close(subject.values(), plain, rtol=1e-5, atol=1e-6)
        assert all(layer.module.probe is None for layer in subject.layers)


def test_seen_weights_sum_to_one(subjects):
    for subject in subjects:
        for probe in subject.observe():
            total = torch.zeros(len(subject.batch.z), probe.seen.shape[1])
            total.index_add_(0, subject.batch.edge_index[1], probe.seen)
            torch.testing.assert_close(total, torch.ones_like(total))
            assert (probe.seen_size >= 0).all() and probe.seen_size.shape == probe.seen.shape


def test_own_weights_put_in_again_give_the_same_prediction(subjects):
    for subject in subjects:
        own = [LayerProbe(weights=probe.seen) for probe in subject.observe()]
        torch.testing.assert_close(subject.values(own), subject.values(), rtol=1e-5, atol=1e-6)


def test_removed_edges_are_those_of_a_graph_without_them(on_molecules, coulgat):
    """Removal with renormalisation is what the network gives of the smaller graph."""
    (subject,) = on_molecules(coulgat())
    gone = subject.removable & (torch.arange(len(subject.length)) % 3 == 0)
    probes = subject.probes(
        edge_bias=torch.zeros_like(subject.length).masked_fill(gone, -torch.inf)
    )
    smaller = replace(
        subject.batch,
        edge_index=subject.batch.edge_index[:, ~gone],
        image=subject.batch.image[~gone],
    )
    expected = subject.network(smaller)[:, 0] * 2 + 1
    torch.testing.assert_close(subject.values(probes), expected, rtol=1e-5, atol=1e-6)


def test_a_gate_takes_away_what_the_head_adds(subjects):
    """With all gates at zero, no atom knows of another one."""
    for subject in subjects:
        gates = torch.zeros(len(subject.layers), len(subject.layers[0].projection))
        moved = replace(subject, batch=replace(subject.batch, pos=subject.batch.pos * 1.01))
        residual = subject.network.blocks[0]
        if hasattr(residual, "conv"):  # the potential beside the heads sees distances
            continue
        torch.testing.assert_close(
            subject.values(subject.gates(gates)), moved.values(moved.gates(gates))
        )


def test_record_of_a_known_attention():
    record = AttentionRecord(
        target=np.array([0, 0, 1, 1]),
        source=np.array([0, 1, 0, 1]),
        length=np.array([0.0, 2.0, 2.0, 0.0]),
        weight=np.array([[[0.5, 0.5, 1.0, 0.0]]]),
        unit="Å",
    )
    assert record.entropy() == pytest.approx(np.array([[np.log(2) / 2]]))
    assert record.effective_range() == pytest.approx(np.array([[1.5]]))
    total, count = record.by_length(np.array([0.0, 1.0, 3.0]))
    assert total.tolist() == [[[0.5, 1.5]]] and count.tolist() == [2, 2]
    assert record.part(np.array([1])).weight.tolist() == [[[0.5]]]


@pytest.mark.parametrize("readout", ["atoms", "pairs"])
def test_values_of_atoms_and_pairs(coulgat, predictor, molecules, readout):
    items = molecules()
    for item in items:
        del item["y"]
        item["pair_index"] = torch.triu_indices(4, 4, 1)
    subjects = list(prepare(predictor(coulgat(readout=readout), "molecules"), items))
    with torch.no_grad():
        rows = {"atoms": 16, "pairs": 24}[readout]
        assert subjects[0].values().shape == (rows,)
        assert subjects[0].mean(subjects[0].values()).shape == (4,)
    found = heads.heads(subjects, lambda n: None)
    assert found["error_increase"] is None and np.array(found["ablation"]).min() > 0


def test_probes_are_taken_away_after_an_error(coulgat):
    network = coulgat()
    with pytest.raises(RuntimeError, match="within"):
        with probed(network, [LayerProbe(), LayerProbe()]):
            raise RuntimeError("within")
    assert all(layer.module.probe is None for layer in network.attention_layers())
