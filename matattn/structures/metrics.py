"""Errors in physical units, and those of baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from matattn.structures.classification import logistic_fit, scores, sigmoid
from matattn.structures.dataset import EVALUATED, PropertyDataset
from matattn.structures.structure import MAX_ATOMIC_NUMBER
from matattn.units import Property


class TargetErrors(TypedDict, total=False):
    """Errors of one target on some rows, as in ``metrics.json``.

    Of a probability, they are the scores of ``matattn.structures.classification``, and so are those
    of its baselines; of other targets, mean absolute errors.
    """

    mae: float
    log_loss: float
    auroc: float | None
    balanced_accuracy: float | None
    n: int  # rows with a label
    baselines: Mapping[str, Any]
    rmse: float
    unit: str
    interval: dict[str, float]  # coverage and mean_width
    new_formulas: TargetErrors  # on formulas of no labelled training row: mae, n, baselines


def mean_absolute_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean absolute error over the rows that have a label (NaN = no label)."""
    error = (predicted - true)[~np.isnan(true)]
    return float(np.abs(error).mean()) if len(error) else math.nan


def root_mean_square_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the root mean square error over the rows that have a label."""
    error = (predicted - true)[~np.isnan(true)]
    return float(np.sqrt(np.square(error).mean())) if len(error) else math.nan


def composition(dataset: PropertyDataset) -> np.ndarray:
    """Return the elements of every row of the labels [n, 98].

    A structure has the fraction of each element, or the number of atoms for extensive targets; an
    atom has a 1 at its element, and a pair has the sum of its atoms.
    """
    if dataset.level == "structure":
        sites, numbers = dataset.sites(), dataset.numbers()
        owner = np.repeat(np.arange(len(sites)), sites)
        places = owner * MAX_ATOMIC_NUMBER + np.concatenate(numbers) - 1
        counts = np.bincount(places, minlength=len(sites) * MAX_ATOMIC_NUMBER)
        counts = counts.reshape(-1, MAX_ATOMIC_NUMBER)
        return counts / (np.ones((1, 1)) if dataset.extensive else sites[:, None])
    rows = []
    for item in dataset.items:
        z = item.z.numpy()
        one_hot = np.zeros((len(z), MAX_ATOMIC_NUMBER))
        one_hot[np.arange(len(z)), z - 1] = 1
        if dataset.level == "pair":
            one_hot = one_hot[item.pair_index.numpy()].sum(0)
        rows.append(one_hot)
    return np.concatenate(rows)


def linear_fit(x: np.ndarray, y: np.ndarray, ridge: float = 1.0) -> tuple[float, np.ndarray]:
    """Return intercept (not penalised) and coefficients [F] of a ridge regression on x [n, F]."""
    center_x, center_y = x.mean(0), y.mean()
    normal = (x - center_x).T @ (x - center_x) + ridge * np.eye(x.shape[1])
    coefficients = np.linalg.solve(normal, (x - center_x).T @ (y - center_y))
    return float(center_y - center_x @ coefficients), coefficients


def element_constants(dataset: PropertyDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the per-element contributions [98, T] and the residual labels [n, T].

    The contributions are fitted to the labelled training rows.
    """
    labels, x, train = dataset.labels(), composition(dataset), dataset.label_rows("train")
    columns = []
    for column in labels.T:
        rows = train[~np.isnan(column[train])]
        columns.append(linear_fit(x[rows], column[rows])[1])
    constants = np.stack(columns, axis=1)
    return constants, labels - x @ constants


def baselines(dataset: PropertyDataset, ridge: float = 1.0) -> dict[str, np.ndarray]:
    """Return predictions [n, T] of models without structure, fitted to the training labels.

    ``mean`` is the mean label. ``linear_composition`` is a ridge regression on the
    ``composition``, of what is true or false a logistic one; for pairs, on an indicator of their
    two elements. ``dataset.floors`` are added.
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
        if dataset.targets[column].is_class:
            intercept, coefficients = logistic_fit(x[rows], labels[rows, column], ridge)
            linear[:, column] = sigmoid(intercept + x @ coefficients)
    return {"mean": mean, "linear_composition": linear, **dataset.floors}


def evaluate(
    dataset: PropertyDataset,
    predicted: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Compute errors and baseline errors of every split and target.

    Returns {split: ``errors`` of its rows}; a split without labelled rows is left out.
    """
    labels, formulas = dataset.labels(), np.array(dataset.formulas())[dataset.owners()]
    floors, train = baselines(dataset), dataset.label_rows("train")
    result: dict[str, Any] = {}
    for split in EVALUATED:
        rows = dataset.label_rows(split)
        by_target = errors(dataset, predicted, floors, rows, intervals)
        for column, target in enumerate(dataset.targets):
            trained = formulas[train[~np.isnan(labels[train, column])]]
            new = rows[~np.isnan(labels[rows, column]) & ~np.isin(formulas[rows], trained)]
            if len(new):
                new_errors = _errors(target, labels, predicted, floors, new, column)
                by_target[target.name]["new_formulas"] = new_errors
        if by_target:
            result[split] = by_target
    return result


def errors(
    dataset: PropertyDataset,
    predicted: np.ndarray,
    floors: Mapping[str, np.ndarray],
    rows: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, TargetErrors]:
    """Compute the errors of predictions [n, T] and of baselines, ``floors``, on some rows.

    A target without a label in these rows is left out. ``intervals`` are lower and upper ends
    [n, T].
    """
    labels = dataset.labels()
    result: dict[str, TargetErrors] = {}
    for column, target in enumerate(dataset.targets):
        labelled = rows[~np.isnan(labels[rows, column])]
        if not len(labelled):
            continue
        true = labels[labelled, column]
        result[target.name] = target_errors = _errors(
            target, labels, predicted, floors, labelled, column
        )
        target_errors["unit"] = target.unit
        if target.is_class:
            continue
        target_errors["rmse"] = root_mean_square_error(true, predicted[labelled, column])
        if intervals is not None and not np.isnan(intervals[0][labelled, column]).any():
            lower, upper = (ends[labelled, column] for ends in intervals)
            target_errors["interval"] = {
                "coverage": float(((lower <= true) & (true <= upper)).mean()),
                "mean_width": float((upper - lower).mean()),
            }
    return result


def _errors(
    target: Property,
    labels: np.ndarray,
    predicted: np.ndarray,
    floors: Mapping[str, np.ndarray],
    rows: np.ndarray,
    column: int,
) -> TargetErrors:
    true = labels[rows, column]
    ours, theirs = predicted[rows, column], {name: f[rows, column] for name, f in floors.items()}
    if target.is_class:
        of_floors = {name: scores(true, floor) for name, floor in theirs.items()}
        return {**scores(true, ours), "n": len(rows), "baselines": of_floors}
    return {
        "mae": mean_absolute_error(true, ours),
        "n": len(rows),
        "baselines": {name: mean_absolute_error(true, floor) for name, floor in theirs.items()},
    }
