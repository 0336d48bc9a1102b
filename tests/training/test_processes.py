"""What the processes of a training share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matattn.training import processes
from matattn.training.processes import balanced_share, number_and_count, share_of_mean, summed


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_items_are_shared_evenly(sizes, count):
    shares = [balanced_share(sizes, number, count) for number in range(count)]
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(sizes[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
    assert len(sizes) < count or all(shares)


def test_one_process_has_nothing_to_share():
    mean = torch.tensor(2.0, requires_grad=True)
    assert number_and_count() == (0, 1)
    assert summed(mean) is mean and share_of_mean(mean, torch.tensor(3)) is mean


@pytest.mark.parametrize("counts", [[3, 5], [4, 0]])
def test_mean_of_the_gradients_is_that_of_the_mean_over_all(monkeypatch, counts):
    values = torch.arange(1.0, 1 + sum(counts))
    monkeypatch.setattr(processes, "number_and_count", lambda: (0, len(counts)))
    monkeypatch.setattr(processes, "summed", lambda count: torch.tensor(sum(counts)))
    gradients = []
    for part in values.split(counts):
        scale = torch.tensor(1.0, requires_grad=True)
        mean = scale * (part.mean() if len(part) else 0.0)
        share_of_mean(mean, torch.tensor(len(part))).backward()
        gradients.append(scale.grad)
    assert torch.stack(gradients).mean() == pytest.approx(values.mean())
