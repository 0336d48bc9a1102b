"""Other attention weights, and what they change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from matattn.workflows.structures import other_attention


def test_other_attention(subjects):
    found = other_attention.attention_matters(subjects, 0, lambda n: None)
    assert 0 < found["permuted"]["jsd"] < found["max_jsd"] == pytest.approx(np.log(2))
    assert 0 < found["adversarial"]["change"] <= found["tolerance"] == pytest.approx(0.02)
    assert found["adversarial"]["jsd"] > 0


def test_permuted_weights_are_the_same_weights(on_molecules, coulgat):
    (subject,) = on_molecules(coulgat())
    weights = subject.observe()[0].seen
    other = other_attention._permuted(subject, weights, seed=0)
    for atom in range(len(subject.batch.z)):
        at = subject.batch.edge_index[1] == atom
        torch.testing.assert_close(other[at].sort(0).values, weights[at].sort(0).values)
    assert not torch.equal(other, weights)
