"""Errors in physical units, and the baselines that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from matattn.dataset import SPLITS, PropertyDataset
from matattn.structure import MAX_ATOMIC_NUMBER


def mean_absolute_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error over the rows that have a label (NaN = no label)."""
    known = ~np.isnan(true)
    return float(np.abs(predicted[known] - true[known]).mean()) if known.any() else float("nan")


def root_mean_square_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean square error over the rows that have a label."""
    known = ~np.isnan(true)
    return (
        float(np.sqrt(np.square(predicted[known] - true[known]).mean()))
        if known.any()
        else float("nan")
    )


def element_fractions(dataset: PropertyDataset) -> np.ndarray:
    """Fraction of each element in every crystal [n, 98]."""
    table = np.zeros((len(dataset.items), MAX_ATOMIC_NUMBER))
    for row, item in enumerate(dataset.items):
        z = item.z.numpy()
        np.add.at(table[row], z - 1, 1 / len(z))
    return table


def baselines(dataset: PropertyDataset, ridge: float = 1.0) -> dict[str, np.ndarray]:
    """Predictions [n, T] of models that see no structure, fitted on the labelled training rows.

    ``mean``: the mean label. ``linear_composition``: ridge regression on element fractions with an
    unpenalised intercept.
    """
    labels, fractions = dataset.labels(), element_fractions(dataset)
    train = dataset.rows("train")
    mean, linear = np.empty_like(labels), np.empty_like(labels)
    for column in range(labels.shape[1]):
        rows = train[~np.isnan(labels[train, column])]
        y, x = labels[rows, column], fractions[rows]
        center_x, center_y = x.mean(0), y.mean()
        normal = (x - center_x).T @ (x - center_x) + ridge * np.eye(x.shape[1])
        coefficients = np.linalg.solve(normal, (x - center_x).T @ (y - center_y))
        mean[:, column] = center_y
        linear[:, column] = center_y + (fractions - center_x) @ coefficients
    return {"mean": mean, "linear_composition": linear}


def errors(
    dataset: PropertyDataset,
    predicted: np.ndarray,
    floors: Mapping[str, np.ndarray],
    rows: np.ndarray,
) -> dict[str, Any]:
    """Errors of predictions [n, T] and of baselines (``baselines``) on some rows of the data.

    Returns {target: {mae, rmse, unit, n, baselines: {name: mae}}}; a target without a label in
    these rows is left out.
    """
    labels, result = dataset.labels()[rows], {}
    for column, target in enumerate(dataset.targets):
        true = labels[:, column]
        count = int((~np.isnan(true)).sum())
        if count == 0:
            continue
        result[target.name] = {
            "mae": mean_absolute_error(true, predicted[rows, column]),
            "rmse": root_mean_square_error(true, predicted[rows, column]),
            "unit": target.unit,
            "n": count,
            "baselines": {
                name: mean_absolute_error(true, floor[rows, column])
                for name, floor in floors.items()
            },
        }
    return result


def evaluate(dataset: PropertyDataset, predicted: np.ndarray) -> dict[str, Any]:
    """``errors`` of every split: {split: {target: ...}}; one without labelled rows is left out."""
    floors = baselines(dataset)
    found = {split: errors(dataset, predicted, floors, dataset.rows(split)) for split in SPLITS}
    return {split: result for split, result in found.items() if result}
