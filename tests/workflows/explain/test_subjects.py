"""What is explained, in batches."""

from __future__ import annotations

import pytest
import torch

from matattn.workflows.explain import heads
from matattn.workflows.explain.subjects import over


def test_batches_do_not_change_what_is_found(on_molecules, coulgat, monkeypatch):
    whole = on_molecules(coulgat())
    torch.manual_seed(0)
    monkeypatch.setattr("matattn.workflows.structures.explained.EDGES_PER_BATCH", 1)
    parts = on_molecules(coulgat())
    assert (len(whole), len(parts)) == (1, 4)
    one, two = (over(s, lambda x: heads.importance(x, torch.ones(2, 2)))
                for s in (whole, parts))  # fmt: skip
    assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
