"""What a network of fields has to beat: predictions that need no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from matattn.fields import FieldDataset, MeshSample

Predict = Callable[[MeshSample], np.ndarray]
PROBES = 256  # places at which meshes without common nodes are compared


def relative_l2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """|predicted - true| / |true| of every field [T], from [N, T], with norms over the nodes."""
    error = np.linalg.norm(predicted.astype(np.float64) - true, axis=0)
    return error / np.maximum(np.linalg.norm(true.astype(np.float64), axis=0), 1e-30)


def baselines(dataset: FieldDataset) -> dict[str, Predict]:
    """Predictors fitted on the training samples.

    ``constant``: the mean over all nodes. ``nearest_sample``: the field of the training sample
    with the nearest inputs. Where nodes correspond (``dataset.aligned``) also ``mean_field``, the
    mean at each node, and ``kernel_ridge``, Gaussian kernel ridge regression from all inputs of a
    sample to all its values, with width and ridge chosen on the validation samples or, without any,
    on every tenth training sample. Elsewhere samples are compared at points of the training meshes,
    each mesh by its node that is nearest to the point.
    """
    train = dataset.samples("train")
    mean = np.concatenate([sample.y for sample in train]).mean(0)
    found: dict[str, Predict] = {"constant": lambda s: np.broadcast_to(mean, s.y.shape)}
    if not dataset.aligned:
        return found | {"nearest_sample": _nearest_at_probes(train)}
    features = np.stack([sample.inputs.ravel() for sample in train]).astype(np.float64)
    spread = features.std(0)
    features, varying = features / np.where(spread > 0, spread, 1), spread > 0
    fields = np.stack([sample.y for sample in train]).astype(np.float64)

    def describe(samples: Sequence[MeshSample]) -> np.ndarray:
        rows = np.stack([sample.inputs.ravel() for sample in samples])
        return rows[:, varying] / spread[varying]

    known = features[:, varying]

    def nearest(sample: MeshSample) -> np.ndarray:
        return fields[cdist(describe([sample]), known).argmin()]

    average = fields.mean(0)
    found |= {"mean_field": lambda s: average, "nearest_sample": nearest}
    held = dataset.samples("val")
    fitted = np.arange(len(train))
    if not held:
        held, fitted = train[::10], np.flatnonzero(np.arange(len(train)) % 10)
    if len(fitted) and known.shape[1]:
        choice = _choose_ridge(known[fitted], fields[fitted], describe(held), held)
        predict = _kernel_ridge(known, fields, *choice)
        found["kernel_ridge"] = lambda s: predict(describe([s]))[0]
    return found


def _kernel_ridge(
    known: np.ndarray, fields: np.ndarray, width: float, ridge: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Kernel ridge regression [n, F] -> [n, N, T] around the mean field."""

    def kernel(rows: np.ndarray) -> np.ndarray:
        return np.exp(-cdist(rows, known, "sqeuclidean") / (2 * width**2))

    average = fields.mean(0)
    factor = cho_factor(kernel(known) + ridge * np.eye(len(known)))
    weights = cho_solve(factor, (fields - average).reshape(len(known), -1))
    return lambda rows: average + (kernel(rows) @ weights).reshape(-1, *average.shape)


def _choose_ridge(
    known: np.ndarray, fields: np.ndarray, rows: np.ndarray, held: Sequence[MeshSample]
) -> tuple[float, float]:
    """Width (from multiples of the median distance) and ridge with the smallest held-out error."""
    typical = float(np.median(cdist(known[:200], known[:200]))) or 1.0
    errors = {}
    for width, ridge in product(typical * np.array([0.5, 1, 2, 4, 8]), [1e-6, 1e-4, 1e-2]):
        predicted = _kernel_ridge(known, fields, width, ridge)(rows)
        pairs = zip(held, predicted, strict=True)
        errors[width, ridge] = np.mean([relative_l2(s.y, p) for s, p in pairs])
    return min(errors, key=errors.__getitem__)


def _nearest_at_probes(train: list[MeshSample]) -> Predict:
    points = np.concatenate([sample.pos for sample in train])
    chosen = np.random.default_rng(0).permutation(len(points))[:PROBES]
    probes = points[chosen]

    def describe(sample: MeshSample) -> np.ndarray:
        return sample.inputs[KDTree(sample.pos).query(probes)[1]].ravel()

    known = np.stack([describe(sample) for sample in train]).astype(np.float64)
    spread = known.std(0)
    spread[spread == 0] = 1

    def predict(sample: MeshSample) -> np.ndarray:
        near = train[cdist(describe(sample)[None] / spread, known / spread).argmin()]
        return near.y[KDTree(near.pos).query(sample.pos)[1]]

    return predict
