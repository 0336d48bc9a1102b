"""The order of edges, and what removing them does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from matattn.workflows.explain import faithfulness


def in_double_precision(subject):
    network, batch = copy.deepcopy(subject.network).double(), subject.batch.to(dtype=torch.float64)
    return replace(subject, network=network, batch=batch, length=subject.length.double())


def test_ranks_are_within_structures_and_leave_self_edges(subjects):
    for subject in subjects:
        rank = faithfulness.order(subject, -subject.length, seed=1)
        assert (rank[~subject.removable] == -1).all()
        for graph in range(subject.count):
            inside = (subject.graph == graph) & subject.removable
            assert sorted(rank[inside].tolist()) == list(range(int(inside.sum())))
            by_rank = subject.length[inside][rank[inside].argsort()]
            assert (by_rank.diff() > -1e-5).all()


def test_the_order_by_effect_is_the_most_faithful_for_one_edge(on_molecules, coulgat):
    """Removing the one edge whose loss changes most changes most: no method can do better."""
    (subject,) = on_molecules(coulgat())
    edges, effect = faithfulness.left_out(subject, most=10, seed=0)
    assert len(edges) == int(subject.removable.sum())
    best = torch.zeros_like(subject.length)
    best[edges] = effect
    first = faithfulness.removal_curves(subject, faithfulness.order(subject, best, 0))[:, 0, 0, 0]
    for name, score in faithfulness.edge_scores(subject).items():
        rank = faithfulness.order(subject, score, 0)
        other = faithfulness.removal_curves(subject, rank)[:, 0, 0, 0]
        assert (other <= first + 1e-5).all(), name


def test_gradient_is_what_leaving_out_a_little_does(subjects):
    subject = in_double_precision(subjects[0])
    bias, step = torch.zeros_like(subject.length), 1e-5
    score = faithfulness.edge_scores(subject)["logit gradient"]
    for edge in subject.removable.nonzero()[:3, 0].tolist():
        ends = []
        for sign in (1, -1):
            bias[edge] = sign * step
            ends.append(subject.values(subject.probes(edge_bias=bias.clone())).sum().item())
        bias[edge] = 0
        slope = abs(ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float(score[edge]), rel=1e-3, abs=1e-8)
