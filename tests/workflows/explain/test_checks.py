"""Checks that a measure depends on the weights."""

from __future__ import annotations

import pytest

from matattn.workflows.explain import checks, faithfulness


def test_shuffled_weights_leave_the_order_by_distance(on_molecules, coulgat):
    subjects = on_molecules(coulgat())
    scores = [faithfulness.edge_scores(s) for s in subjects]
    found = checks.depends_on_weights(subjects, faithfulness.edge_scores, scores, 0, lambda n: None)
    assert found["shuffled_blocks"] == [1, 2]
    assert found["tau"]["shortest first"] == pytest.approx([1, 1])
    assert found["tau"]["logit gradient"][-1] < 0.9
