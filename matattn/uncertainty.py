r"""How far to trust a prediction: an interval for every value, and a warning for novel inputs.

Split-conformal intervals (Lei et al., "Distribution-Free Predictive Inference for Regression", JASA
2018, arXiv 1604.04173), normalised by a spread s(x) so that they are wide where errors are large:

.. math:: \hat y(x) \pm q\, s(x), \qquad q = \text{the } \lceil (n + 1) L \rceil
          \text{-th smallest of } |y_i - \hat y(x_i)| / s(x_i)

over n calibration rows on which no weight was trained. New rows that are exchangeable with those
lie inside with a probability of at least L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

LEVEL = 0.9  # L
FEWEST_ROWS = 20  # calibration rows; with fewer, an interval means little
FAR = 0.99  # share of the calibration rows that are not far from the training rows
COMPONENTS = 32  # of the features, in which distances are measured


class HasMembers(Protocol):
    """An ensemble that gives the outputs of its members."""

    def member_outputs(self, features: Tensor) -> Tensor:
        """Return the outputs of every member [M, B, T] from features [B, F]."""


def conformal_quantile(scores: Tensor, level: float) -> float:
    """Return the smallest q with the promised coverage from scores [n]; inf if n is too small."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf


class LatentDistance:
    """Distance to the nearest training crystal in the network's own features.

    Features are projected on their leading principal components and each is divided by its
    standard deviation, plus a tenth of the largest: small components are mostly noise.
    """

    def __init__(self, center: Tensor, axes: Tensor, references: Tensor) -> None:
        self.center, self.axes, self.references = center, axes, references

    @classmethod
    def fit(cls, features: Tensor) -> LatentDistance:
        """Fit to the features of the training rows [n, F]."""
        features = features.double()
        center = features.mean(0)
        variance, vectors = torch.linalg.eigh((features - center).T.cov(correction=0))
        variance, vectors = variance.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
        axes = vectors / (variance + 0.01 * variance[0]).clamp(min=1e-12).sqrt()
        references = ((features - center) @ axes).half()
        return cls(center.float(), axes.float(), references)

    def __call__(self, features: Tensor) -> Tensor:
        """Return the distances [m] of features [m, F], in standard deviations."""
        points, references = self.points(features), self.references.float()
        return torch.cat([torch.cdist(part, references).amin(1) for part in points.split(256)])

    def points(self, features: Tensor) -> Tensor:
        """Return the components [m, K] of features [m, F] that distances are measured in."""
        return (features.to(self.center) - self.center) @ self.axes


def _latent_distance(network: object, features: Tensor, distance: LatentDistance) -> Tensor:
    return distance(features)[:, None]


def _last_layer(network: object, features: Tensor, distance: LatentDistance) -> Tensor:
    """Return the standard deviation of a Bayesian linear layer on the same components."""
    references = distance.references.double()
    points = distance.points(features).double()
    covariance = references.T @ references / len(references)
    ridge = 1e-6 * torch.eye(references.shape[1], dtype=torch.float32)
    inverse = torch.linalg.inv(covariance + ridge)
    return (1 + (points @ inverse * points).sum(1)).sqrt().float()[:, None]


def _ensemble(network: HasMembers, features: Tensor, distance: LatentDistance) -> Tensor:
    """Return the standard deviation over the members, in units of the labels' spread."""
    return network.member_outputs(features).std(0)


# Spread [m, 1 or T] of every prediction, up to a factor that the calibration sets.
SPREADS: Mapping[str, Callable[[Any, Tensor, LatentDistance], Tensor]] = {
    "latent_distance": _latent_distance,
    "last_layer": _last_layer,
    "ensemble": _ensemble,
}


@dataclass(frozen=True)
class Uncertainty:
    """Intervals and novelty for the predictions of one network.

    ``floor`` [T] is added to the spread; ``scores`` [n, T] are the errors of the calibration rows
    in units of that sum (NaN = no label); ``far`` is the latent distance from which rows are far.
    """

    method: str
    distance: LatentDistance
    floor: Tensor
    scores: Tensor
    far: float

    @classmethod
    def fit(
        cls,
        method: str,
        network: object,
        train: tuple[Tensor, Tensor],
        calibration: tuple[Tensor, Tensor],
    ) -> Uncertainty:
        """Fit to features [n, F] and absolute errors [n, T] of training and calibration rows."""
        distance = LatentDistance.fit(train[0])
        errors = calibration[1]
        train_spread = SPREADS[method](network, train[0], distance)
        spread = SPREADS[method](network, calibration[0], distance)
        # Scale training intervals by the error ratio, capped at half the usual width.
        ratio = (train[1].nanmean(0) / errors.nanmean(0)).clamp(0.05, 0.95)
        small, large = train_spread.median(0).values, spread.median(0).values
        floor = torch.maximum((ratio * large - small) / (1 - ratio), large).clamp(min=1e-6)
        distances = distance(calibration[0])
        far = min(conformal_quantile(distances, FAR), float(distances.max()))
        return cls(method, distance, floor, errors / (spread + floor), far)

    def half_widths(self, network: object, features: Tensor, level: float = LEVEL) -> Tensor:
        """Return half widths of the intervals [m, T], physical units, from features [m, F]."""
        columns = [column[~column.isnan()] for column in self.scores.T]
        quantiles = [conformal_quantile(column, level) for column in columns]
        return self.spread(network, features) * torch.tensor(quantiles, dtype=torch.float32)

    def spread(self, network: object, features: Tensor) -> Tensor:
        """Return the unit of the scores [m, T], in physical units, from features [m, F]."""
        return SPREADS[self.method](network, features, self.distance) + self.floor

    def below(self, scores: Tensor, column: int) -> Tensor:
        """Return the probability [m] that errors of a target are below ``scores`` [m].

        ``scores`` have a sign and are in units of ``spread``. Errors of both signs are taken to be
        equally likely, and a share of 1 / (n + 1) to be larger than all that were seen. So the ends
        of an interval of level L have (1 - L) / 2 outside.
        """
        seen = self.scores[:, column]
        seen = seen[~seen.isnan()].sort().values
        inside = torch.searchsorted(seen, scores.abs().to(seen), right=True) / (len(seen) + 1)
        return 0.5 + 0.5 * scores.sign() * inside

    def novelty(self, features: Tensor) -> Tensor:
        """Return the latent distances [m] in units of ``far``: above 1 is flagged."""
        return self.distance(features) / self.far

    def tensors(self) -> dict[str, Tensor]:
        """Return what a bundle keeps as tensors."""
        return {
            "center": self.distance.center,
            "axes": self.distance.axes,
            "references": self.distance.references,
            "floor": self.floor,
            "scores": self.scores,
        }

    def config(self) -> dict[str, Any]:
        """Return what a bundle keeps as plain values."""
        return {"method": self.method, "level": LEVEL, "far": self.far}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Uncertainty:
        """Return the inverse of ``config()`` and ``tensors()``; KeyError names what is wrong."""
        if config["method"] not in SPREADS:
            raise KeyError(config["method"])
        distance = LatentDistance(*(tensors[key] for key in ("center", "axes", "references")))
        return cls(config["method"], distance, tensors["floor"], tensors["scores"], config["far"])
