"""Losses of properties, by hand."""

import math

import pytest
import torch

from matattn.training.losses import LOSSES

VALUES = {
    "l1": [0.5, 3.0],
    "mse": [0.25, 9.0],
    "huber": [0.125, 2.5],
}


@pytest.mark.parametrize("name", VALUES)
def test_regression(name):
    output, target = torch.tensor([1.5, -2.0]), torch.tensor([1.0, 1.0])
    assert LOSSES[name].values(output, target).tolist() == VALUES[name]
    assert not LOSSES[name].classifies


def test_cross_entropy_is_that_of_the_sigmoid():
    loss = LOSSES["cross_entropy"]
    found = loss.values(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 0.0]))
    right = 1 / (1 + math.exp(-2))
    expected = [math.log(2), -math.log(right), -math.log(1 - right)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6) and loss.classifies
    assert loss.values(torch.tensor([500.0]), torch.tensor([0.0])).isfinite()
