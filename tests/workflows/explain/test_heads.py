"""The importance of heads."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from matattn.workflows.explain import heads


def in_double_precision(subject):
    network, batch = copy.deepcopy(subject.network).double(), subject.batch.to(dtype=torch.float64)
    return replace(subject, network=network, batch=batch, length=subject.length.double())


def test_importance_is_the_derivative_by_the_gates(subjects):
    """Against finite differences, in double precision."""
    for subject in subjects:
        double = in_double_precision(subject)
        shape = (len(subject.layers), len(subject.layers[0].projection))
        found = heads.importance(double, torch.ones(shape, dtype=torch.float64))
        step = 1e-5
        for head in np.ndindex(*shape):
            ends = []
            for sign in (1, -1):
                gate = torch.ones(shape, dtype=torch.float64)
                gate[head] += sign * step
                ends.append(double.values(double.gates(gate)))
            slope = (ends[0] - ends[1]).abs() / (2 * step)
            torch.testing.assert_close(found[:, *head], slope.detach(), rtol=1e-4, atol=1e-7)


def test_a_dead_head_is_unimportant_and_pruned_first(on_molecules, coulgat):
    network = coulgat()
    network.blocks[1].out_proj.weight.data[:, 8:16] = 0  # second head of the second layer
    (subject,) = on_molecules(network)
    found = heads.heads([subject], lambda n: None)
    assert found["importance"][1][1] == found["ablation"][1][1] == 0
    assert found["pruning"]["order"][0] == [1, 1]
    assert found["pruning"]["error"][1] == pytest.approx(found["pruning"]["error"][0], rel=1e-6)
    assert len(found["pruning"]["change"]) == 5
