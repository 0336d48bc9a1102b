r"""How far to trust predicted fields: intervals at nodes, for whole fields, and of their extremes.

Split-conformal over samples (Lei et al., JASA 2018, arXiv 1604.04173): the nodes of a mesh err
together, so the n calibration *samples* are what new ones are exchangeable with. The error of field
t at a node of sample s is measured in units of

.. math:: s_{st}(x) = r_{st}\, e_t(\hat y / r_{st})

with :math:`r_{st}` the root mean square of the predicted field over the nodes, and :math:`e_t` the
mean error of training samples, in units of r, where the prediction had that size (``BINS`` bins of
equally many nodes, lines between). Three kinds of scores are kept, for one level L each:

- nodes: the share L of the nodes of a new sample, on average over samples;
- whole fields: the largest score of a sample, so that all nodes of a new sample are inside together
  with probability L;
- extremes and means over the nodes: their errors, in units of r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.uncertainty import FAR, LEVEL, LatentDistance, conformal_quantile

BINS = 16  # of predictions, by size, that have an error of their own
KEPT = 200  # quantiles of the scores of a sample's nodes
FLOOR = 0.1  # of the mean relative error: the least that a bin may have
# Of the values of a field [N] at the nodes of a sample.
SUMMARIES: Mapping[str, Callable[[np.ndarray], Any]] = {
    "min": np.min,
    "mean": np.mean,
    "max": np.max,
}

Pair = tuple[np.ndarray, np.ndarray]  # predicted and true fields [N, T] of a sample


@dataclass(frozen=True)
class Spread:
    """Usual errors by the size of the prediction: ``sizes`` and ``errors`` [BINS, T], over r."""

    sizes: np.ndarray
    errors: np.ndarray

    @classmethod
    def fit(cls, pairs: Sequence[Pair]) -> Spread:
        """Fit to predicted and true fields of training samples."""
        size = np.concatenate([predicted / rms(predicted) for predicted, _ in pairs])
        error = np.concatenate([np.abs(p - true) / rms(p) for p, true in pairs])
        order = size.argsort(axis=0)
        size, error = (np.take_along_axis(values, order, axis=0) for values in (size, error))
        bins = np.array_split(np.arange(len(size)), BINS)
        sizes, errors = (
            np.stack([values[rows].mean(axis=0) for rows in bins if len(rows)])
            for values in (size, error)
        )
        return cls(sizes, np.maximum(errors, FLOOR * error.mean(axis=0)) + 1e-12)

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        """Return s [N, T], in physical units, from a predicted field."""
        r = rms(predicted)
        columns = [
            np.interp(column / unit, sizes, errors)
            for column, unit, sizes, errors in zip(
                predicted.T, r, self.sizes.T, self.errors.T, strict=True
            )
        ]
        return np.stack(columns, axis=1) * r


def summary(name: str, field: np.ndarray) -> np.ndarray:
    """Return one of ``SUMMARIES`` of a field [N, T] over its nodes [T]."""
    return np.array([SUMMARIES[name](column) for column in field.T])


def rms(field: np.ndarray) -> np.ndarray:
    """Return the root mean square of a field [N, T] over its nodes [T]."""
    return np.sqrt(np.square(field, dtype=np.float64).mean(axis=0)) + 1e-30


@dataclass(frozen=True)
class FieldUncertainty:
    """Intervals and novelty for the fields that one network predicts.

    ``nodes`` [n, KEPT, T] are quantiles of the scores of the nodes of the n calibration samples,
    ``whole`` [n, T] the largest ones, and ``summaries`` those of minimum, mean and maximum. The
    rest is None for a network that gives no features of a mesh: ``distance`` to the training
    samples in these features, and ``far``, the one above which a mesh is flagged.
    """

    spread: Spread
    nodes: Tensor
    whole: Tensor
    summaries: Mapping[str, Tensor]
    distance: LatentDistance | None = None
    far: float = math.inf

    @classmethod
    def fit(
        cls,
        train: Sequence[Pair],
        calibration: Sequence[Pair],
        train_features: Tensor | None = None,
        calibration_features: Tensor | None = None,
    ) -> FieldUncertainty:
        """Fit to samples that were trained on, to samples that were not, and features [n, F]."""
        spread = Spread.fit(train)
        levels = (np.arange(KEPT) + 0.5) / KEPT
        scores = [np.abs(p - true) / spread(p) for p, true in calibration]
        nodes = np.stack(
            [np.quantile(score, levels, axis=0, method="inverted_cdf") for score in scores]
        )
        whole = np.stack([score.max(axis=0) for score in scores])
        summaries = {
            name: _tensor(
                np.stack(
                    [np.abs(summary(name, p) - summary(name, t)) / rms(p) for p, t in calibration]
                )
            )
            for name in SUMMARIES
        }
        known = cls(spread, _tensor(nodes), _tensor(whole), summaries)
        if train_features is None or calibration_features is None:
            return known
        distance = LatentDistance.fit(train_features)
        distances = distance(calibration_features)
        far = max(min(conformal_quantile(distances, FAR), float(distances.max())), 1e-6)
        return cls(spread, known.nodes, known.whole, summaries, distance, far)

    def half_widths(self, predicted: np.ndarray, level: float = LEVEL) -> np.ndarray:
        """Return half widths [N, T] that hold the share ``level`` of the nodes, on average."""
        n, scores = len(self.nodes), self._pooled
        rank = math.ceil(level * (n + 1) / n * len(scores) - 1e-9)  # one sample is still to come
        if rank > len(scores):
            return np.full_like(predicted, np.inf)
        return self.spread(predicted) * scores[rank - 1].numpy()

    @cached_property
    def _pooled(self) -> Tensor:
        return self.nodes.flatten(0, 1).sort(0).values

    def whole_half_widths(self, predicted: np.ndarray, level: float = LEVEL) -> np.ndarray:
        """Return half widths [N, T] that hold all nodes together with probability ``level``."""
        return self.spread(predicted) * _quantiles(self.whole, level)

    def summary_half_widths(
        self, name: str, predicted: np.ndarray, level: float = LEVEL
    ) -> np.ndarray:
        """Return half widths [T] of one of ``SUMMARIES`` of the field."""
        return rms(predicted) * _quantiles(self.summaries[name], level)

    def novelty(self, features: Tensor) -> Tensor | None:
        """Return distances [m] to the training samples in units of ``far``: above 1 is flagged."""
        return None if self.distance is None else self.distance(features) / self.far

    def tensors(self) -> dict[str, Tensor]:
        """Return what a bundle keeps as tensors."""
        spread = {"sizes": _tensor(self.spread.sizes), "errors": _tensor(self.spread.errors)}
        found = {"nodes": self.nodes, "whole": self.whole, **spread, **self.summaries}
        if self.distance is not None:
            for key in _DISTANCE:
                found[key] = getattr(self.distance, key)
        return found

    def config(self) -> dict[str, Any]:
        """Return what a bundle keeps as plain values."""
        return {"method": METHOD, "level": LEVEL, **({"far": self.far} if self.distance else {})}

    @classmethod
    def from_parts(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> FieldUncertainty:
        """Return the inverse of ``config()`` and ``tensors()``; KeyError names what is wrong."""
        if config["method"] != METHOD:
            raise KeyError(config["method"])
        spread = Spread(tensors["sizes"].double().numpy(), tensors["errors"].double().numpy())
        known = (spread, tensors["nodes"], tensors["whole"], {k: tensors[k] for k in SUMMARIES})
        if "far" not in config:
            return cls(*known)
        return cls(*known, LatentDistance(*(tensors[key] for key in _DISTANCE)), config["far"])


METHOD = "fields"
_DISTANCE = ("center", "axes", "references")


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _quantiles(scores: Tensor, level: float) -> np.ndarray:
    return np.array([conformal_quantile(column, level) for column in scores.T])
