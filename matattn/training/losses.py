"""Losses of properties, chosen by name: what is minimised, and what the outputs then are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss of outputs and targets in units of the labels' spread, element by element.

    Args:
        name: in reports and on the axis of a plot.
        values: outputs and targets -> their losses, all of one shape.
        classifies: whether labels are 0 or 1, and the sigmoid of an output a probability.
    """

    name: str
    values: Callable[[Tensor, Tensor], Tensor]
    classifies: bool = False


def _l1(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs()


def _mse(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square()


def _huber(output: Tensor, target: Tensor) -> Tensor:
    """Return the square up to one standard deviation of the labels, and a line beyond it."""
    return F.huber_loss(output, target, reduction="none")


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target, reduction="none")


LOSSES = {
    "l1": Loss("L1 (units of the labels' spread)", _l1),
    "mse": Loss("squared error (units of the labels' variance)", _mse),
    "huber": Loss("Huber loss (units of the labels' spread)", _huber),
    "cross_entropy": Loss("log loss", _cross_entropy, classifies=True),
}
