"""Errors in physical units, and the baselines that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from matattn.structures.dataset import EVALUATED, PropertyDataset
from matattn.structures.structure import MAX_ATOMIC_NUMBER


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


def composition(dataset: PropertyDataset) -> np.ndarray:
    """Elements behind every row of the labels [n, 98].

    Of a structure the fraction of each element, or how many atoms for extensive targets; of an
    atom or pair which element it is, or elements.
    """
    rows = []
    for item in dataset.items:
        z = item.z.numpy()
        one_hot = np.zeros((len(z), MAX_ATOMIC_NUMBER))
        one_hot[np.arange(len(z)), z - 1] = 1
        if dataset.level == "structure":
            one_hot = one_hot.sum(0, keepdims=True) / (1 if dataset.extensive else len(z))
        elif dataset.level == "pair":
            one_hot = one_hot[item.pair_index.numpy()].sum(0)
        rows.append(one_hot)
    return np.concatenate(rows)


def linear_fit(x: np.ndarray, y: np.ndarray, ridge: float = 1.0) -> tuple[float, np.ndarray]:
    """Unpenalised intercept and coefficients [F] of a ridge regression of y [n] on x [n, F]."""
    center_x, center_y = x.mean(0), y.mean()
    normal = (x - center_x).T @ (x - center_x) + ridge * np.eye(x.shape[1])
    coefficients = np.linalg.solve(normal, (x - center_x).T @ (y - center_y))
    return float(center_y - center_x @ coefficients), coefficients


def element_constants(dataset: PropertyDataset) -> tuple[np.ndarray, np.ndarray]:
    """What each element adds to every target [98, T], from the labelled training rows; and what
    the labels [n, T] are without it."""
    labels, x, train = dataset.labels(), composition(dataset), dataset.label_rows("train")
    columns = []
    for column in labels.T:
        rows = train[~np.isnan(column[train])]
        columns.append(linear_fit(x[rows], column[rows])[1])
    constants = np.stack(columns, axis=1)
    return constants, labels - x @ constants


def baselines(dataset: PropertyDataset, ridge: float = 1.0) -> dict[str, np.ndarray]:
    """Predictions [n, T] of models that see no structure, fitted on the labelled training rows.

    ``mean``: the mean label. ``linear_composition``: ridge regression on the ``composition`` with
    an unpenalised intercept; of pairs, on which two elements they are. And ``dataset.floors``.
    """
    labels, x = dataset.labels(), composition(dataset)
    if dataset.level == "pair":
        kinds = np.unique(x, axis=0, return_inverse=True)[1].ravel()
        x = np.eye(kinds.max() + 1)[kinds]
    train = dataset.label_rows("train")
    mean, linear = np.empty_like(labels), np.empty_like(labels)
    for column in range(labels.shape[1]):
        rows = train[~np.isnan(labels[train, column])]
        intercept, coefficients = linear_fit(x[rows], labels[rows, column], ridge)
        mean[:, column] = labels[rows, column].mean()
        linear[:, column] = intercept + x @ coefficients
    return {"mean": mean, "linear_composition": linear, **dataset.floors}


def evaluate(
    dataset: PropertyDataset,
    predicted: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Errors and baseline errors of every split and target.

    Returns {split: ``errors`` of its rows}; a split without labelled rows is left out.
    ``new_formulas`` of a target holds mae, n and baselines of the rows whose reduced formula is not
    among the training rows with a label.
    """
    labels, formulas = dataset.labels(), np.array(dataset.formulas())[dataset.owners()]
    floors, train = baselines(dataset), dataset.label_rows("train")
    result: dict[str, Any] = {}
    for split in EVALUATED:
        rows = dataset.label_rows(split)
        found = errors(dataset, predicted, floors, rows, intervals)
        for column, target in enumerate(dataset.targets):
            known = formulas[train[~np.isnan(labels[train, column])]]
            new = rows[~np.isnan(labels[rows, column]) & ~np.isin(formulas[rows], known)]
            if len(new):
                new_errors = _errors(labels, predicted, floors, new, column)
                found[target.name]["new_formulas"] = new_errors
        if found:
            result[split] = found
    return result


def errors(
    dataset: PropertyDataset,
    predicted: np.ndarray,
    floors: Mapping[str, np.ndarray],
    rows: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Errors of predictions [n, T], and of baselines as ``floors``, on some rows of the data.

    Returns {target: {mae, rmse, unit, n, baselines: {name: mae}}}; a target without a label in
    these rows is left out. With the lower and upper ends [n, T] of ``intervals``, also
    ``interval``: {coverage, mean_width}.
    """
    labels, result = dataset.labels(), {}
    for column, target in enumerate(dataset.targets):
        known = rows[~np.isnan(labels[rows, column])]
        if not len(known):
            continue
        true = labels[known, column]
        found = _errors(labels, predicted, floors, known, column)
        found |= {
            "rmse": root_mean_square_error(true, predicted[known, column]),
            "unit": target.unit,
        }
        if intervals is not None and not np.isnan(intervals[0][known, column]).any():
            lower, upper = (ends[known, column] for ends in intervals)
            found["interval"] = {
                "coverage": float(((lower <= true) & (true <= upper)).mean()),
                "mean_width": float((upper - lower).mean()),
            }
        result[target.name] = found
    return result


def _errors(
    labels: np.ndarray,
    predicted: np.ndarray,
    floors: Mapping[str, np.ndarray],
    rows: np.ndarray,
    column: int,
) -> dict[str, Any]:
    true = labels[rows, column]
    return {
        "mae": mean_absolute_error(true, predicted[rows, column]),
        "n": len(rows),
        "baselines": {
            name: mean_absolute_error(true, floor[rows, column]) for name, floor in floors.items()
        },
    }
