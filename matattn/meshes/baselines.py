"""Baselines of fields: predictions that need no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial import KDTree

from matattn.meshes.fields import ROUNDING, FieldDataset, MeshSample

Predict = Callable[[MeshSample], np.ndarray]
PROBES = 256  # points at which meshes without common nodes are compared


def relative_l2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return |predicted - true| / |true| of every field [T], with norms over the nodes."""
    error = np.linalg.norm(predicted.astype(np.float64) - true, axis=0)
    return error / np.maximum(np.linalg.norm(true.astype(np.float64), axis=0), 1e-30)


def baselines(dataset: FieldDataset) -> dict[str, Predict]:
    """Return predictors fitted on the training samples.

    ``constant``: the mean over all nodes. ``nearest_sample``: the field of the training sample
    with the nearest inputs. Where nodes correspond (``dataset.aligned``) also ``mean_field``, the
    mean at each node, and ``kernel_ridge``, Gaussian kernel ridge regression from all inputs of a
    sample to all its values, with width and ridge chosen on the validation samples or, without any,
    on every tenth training sample. Elsewhere samples are compared at points of the training meshes,
    by the node of each mesh that is nearest to the point.
    """
    train = dataset.samples("train")
    mean = np.concatenate([sample.y for sample in train]).mean(0)
    predictors: dict[str, Predict] = {"constant": lambda s: np.broadcast_to(mean, s.y.shape)}
    if not dataset.aligned:
        return predictors | {"nearest_sample": _nearest_at_probes(dataset, train)}
    inputs = np.stack([sample.inputs.ravel() for sample in train]).astype(np.float64)
    spread = inputs.std(0)
    rounding = ROUNDING * dataset.magnitudes()
    varying = spread > np.tile(rounding, inputs.shape[1] // len(rounding))

    def describe(samples: Sequence[MeshSample]) -> np.ndarray:
        rows = np.stack([sample.inputs.ravel() for sample in samples])
        return rows[:, varying] / spread[varying]

    features = describe(train)
    fields = np.stack([sample.y for sample in train]).astype(np.float64)

    def nearest(sample: MeshSample) -> np.ndarray:
        return fields[_squared_distances(describe([sample]), features).argmin()]

    average = fields.mean(0)
    predictors |= {"mean_field": lambda s: average, "nearest_sample": nearest}
    held_out = dataset.samples("val")
    rows = np.arange(len(train))
    if not held_out:
        held_out, rows = train[::10], np.flatnonzero(rows % 10)
    if len(rows) and features.shape[1]:
        ridge = _KernelRidge(features[rows], fields[rows])
        choice = ridge.choose(describe(held_out), held_out)
        predict = _KernelRidge(features, fields).fit(*choice)

        def regression(sample: MeshSample) -> np.ndarray:
            return predict(_squared_distances(describe([sample]), features))[0]

        predictors["kernel_ridge"] = regression
    return predictors


class _KernelRidge:
    """Gaussian kernel ridge regression [n, F] -> [n, N, T] around the mean field."""

    def __init__(self, features: np.ndarray, fields: np.ndarray) -> None:
        self.features, self.shape = features, fields.shape[1:]
        self.average = fields.mean(0)
        self.residuals = (fields - self.average).reshape(len(features), -1)
        self.squares = _squared_distances(features, features)

    def fit(self, width: float, ridge: float) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function of squared distances [n, training samples] that predicts fields."""
        kernel = np.exp(-self.squares / (2 * width**2))
        factor = cho_factor(kernel + ridge * np.eye(len(kernel)))
        weights = cho_solve(factor, self.residuals)

        def predict(squares: np.ndarray) -> np.ndarray:
            rows = np.exp(-squares / (2 * width**2)) @ weights
            return self.average + rows.reshape(-1, *self.shape)

        return predict

    def choose(self, features: np.ndarray, held_out: Sequence[MeshSample]) -> tuple[float, float]:
        """Return the width (a multiple of the median distance) and ridge of least error."""
        typical = float(np.sqrt(np.median(self.squares))) or 1.0
        squares = _squared_distances(features, self.features)
        errors = {}
        for width, ridge in product(typical * np.array([1, 2, 4, 8]), [1e-6, 1e-4, 1e-2]):
            pairs = zip(held_out, self.fit(width, ridge)(squares), strict=True)
            errors[width, ridge] = np.mean([relative_l2(s.y, p) for s, p in pairs])
        return min(errors, key=errors.__getitem__)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared distances [n, m] of rows [n, F] and [m, F], by one product: F is large."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.maximum(squares, 0)


def _nearest_at_probes(dataset: FieldDataset, train: list[MeshSample]) -> Predict:
    points = np.concatenate([sample.pos for sample in train])
    chosen = np.random.default_rng(0).permutation(len(points))[:PROBES]
    probes = points[chosen]

    def describe(sample: MeshSample) -> np.ndarray:
        return sample.inputs[KDTree(sample.pos).query(probes)[1]].ravel()

    features = np.stack([describe(sample) for sample in train]).astype(np.float64)
    spread = features.std(0)
    size = np.tile(dataset.magnitudes(), len(probes))
    spread = np.where(spread > ROUNDING * size, spread, np.maximum(size, 1))
    features /= spread

    def predict(sample: MeshSample) -> np.ndarray:
        near = train[_squared_distances(describe(sample)[None] / spread, features).argmin()]
        return near.y[KDTree(near.pos).query(sample.pos)[1]]

    return predict
