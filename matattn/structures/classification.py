"""Measures of predicted probabilities, and a logistic model of the composition as their floor."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from matattn.errors import DataError
from matattn.structures.dataset import PropertyDataset

SMALLEST = 1e-7  # probabilities are kept from 0 and 1 by so much in the log loss
_STEPS = 100  # of Newton's method, which needs some ten


class Scores(TypedDict):
    """Scores of probabilities on some rows; None where all rows are of one class."""

    log_loss: float
    auroc: float | None
    balanced_accuracy: float | None


def check_classes(dataset: PropertyDataset) -> None:
    """Raise DataError unless what is true or false has labels 0 and 1, and both in training."""
    labels, owners = dataset.labels(), dataset.owners()
    for column, target in enumerate(dataset.targets):
        if not target.is_class:
            continue
        values = labels[:, column]
        if len(other := np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1))):
            raise DataError(
                f"{dataset.name}: {dataset.items[owners[other[0]]].id}: {target.name} is "
                f"{values[other[0]]:g}; expected 0 or 1, or true or false"
            )
        train = values[dataset.label_rows("train")]
        if len(classes := np.unique(train[~np.isnan(train)])) < 2:
            raise DataError(
                f"{dataset.name}: {target.name} is {classes[0]:g} in all training rows: there is "
                "nothing to tell apart"
            )


def scores(true: np.ndarray, probability: np.ndarray) -> Scores:
    """Return the scores of probabilities [n] of labels 0 or 1 [n]."""
    return {
        "log_loss": log_loss(true, probability),
        "auroc": auroc(true, probability),
        "balanced_accuracy": balanced_accuracy(true, probability),
    }


def log_loss(true: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean of -log of the probability that the true class was given."""
    kept = np.clip(probability, SMALLEST, 1 - SMALLEST)
    return float(-np.where(true == 1, np.log(kept), np.log1p(-kept)).mean())


def auroc(true: np.ndarray, probability: np.ndarray) -> float | None:
    """Return the share of pairs of a 1 and a 0 that are in the right order; ties count half."""
    ones = int((true == 1).sum())
    zeros = len(true) - ones
    if not ones or not zeros:
        return None
    _, rank, count = np.unique(probability, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(count) - (count - 1) / 2)[rank]
    return float((mean_rank[true == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def balanced_accuracy(true: np.ndarray, probability: np.ndarray) -> float | None:
    """Return the mean over both classes of the share that is right, at a threshold of 0.5."""
    said = probability >= 0.5
    if not (true == 1).any() or (true == 1).all():
        return None
    return float((said[true == 1].mean() + (~said[true == 0]).mean()) / 2)


def roc_curve(true: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rates of false and true positives at every threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-probability, kind="stable")
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    right = np.cumsum(true[order] == 1)[last]
    wrong = last + 1 - right
    return np.append(0, wrong / max(wrong[-1], 1)), np.append(0, right / max(right[-1], 1))


def reliability(
    true: np.ndarray, probability: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability and share of ones in bins of equal width; empty ones are left out."""
    number = np.minimum((probability * bins).astype(int), bins - 1)
    filled = np.unique(number)
    return (
        np.array([probability[number == n].mean() for n in filled]),
        np.array([true[number == n].mean() for n in filled]),
    )


def logistic_fit(x: np.ndarray, y: np.ndarray, ridge: float = 1.0) -> tuple[float, np.ndarray]:
    """Return intercept (not penalised) and coefficients [F] of a ridge logistic regression.

    ``x`` is [n, F] and ``y`` [n] of 0 and 1. If only one occurs, the coefficients are zero.
    """
    if y.min() == y.max():
        return (20.0 if y[0] else -20.0), np.zeros(x.shape[1])
    columns = np.column_stack([np.ones(len(x)), x])
    penalty = np.append(0.0, np.full(x.shape[1], ridge))
    weights = np.zeros(columns.shape[1])
    weights[0] = np.log(y.mean() / (1 - y.mean()))
    for _ in range(_STEPS):
        probability = sigmoid(columns @ weights)
        gradient = columns.T @ (probability - y) + penalty * weights
        spread = probability * (1 - probability)
        curvature = (columns * spread[:, None]).T @ columns + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        weights -= step * min(1.0, 10 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0]), weights[1:]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without an overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))
