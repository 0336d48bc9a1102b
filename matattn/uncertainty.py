r"""How far to trust a prediction: an interval for every value, and a warning for novel inputs.

Split-conformal intervals (Lei et al., "Distribution-Free Predictive Inference for Regression", JASA
2018, arXiv 1604.04173), normalised by a spread s(x) so that they are wide where errors are large:

.. math:: \hat y(x) \pm q\, s(x), \qquad q = \text{the } \lceil (n + 1) L \rceil
          \text{-th smallest of } |y_i - \hat y(x_i)| / s(x_i)

over n calibration rows on which no weight was trained. New rows that are exchangeable with those
lie inside with a probability of at least L.

Structures of a new kind are not exchangeable with them. Their intervals use the scores of rows
whose kind was left out of the training of other networks (leave-one-cluster-out: Meredig et al.,
Mol. Syst. Des. Eng. 3, 819 (2018)), in units of s(x) over its median. Whether structures are of new
kinds is asked of all of them together: by the chance that one of them is farther from the training
rows than a calibration row (Mann and Whitney, Ann. Math. Stat. 18, 50 (1947)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

LEVEL = 0.9  # L
FEWEST_ROWS = 20  # calibration rows; with fewer, an interval means little
FAR = 0.99  # share of the calibration rows that are not far from the training rows
COMPONENTS = 32  # of the features, in which distances are measured
SHIFTED = 0.6  # chance of being farther than a calibration row that makes structures a new kind
_CERTAIN = 3.1  # standard errors of that chance above one half: one in a thousand by accident
MOST_SCORES = 20_000  # of rows of left-out kinds
MOST_REFERENCES = 20_000  # training rows that novelty is measured from


_NEWER = ("distances", "usual", "kind_scores")  # that bundles of earlier versions lack


class Calibrated(Protocol):
    """What a bundle keeps of intervals and novelty, whatever the network predicts."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the part that is tensors."""

    def config(self) -> dict[str, Any]:
        """Return the part that is plain values; ``method`` names how they are read."""


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
        self._last: tuple[Tensor, Tensor] | None = None  # features, and their distances

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
        last = self._last  # threads may share this
        if last is None or last[0] is not features:  # width and novelty both ask
            points, references = self.points(features), self.references.float()
            nearest = [torch.cdist(part, references).amin(1) for part in points.split(256)]
            last = self._last = features, torch.cat(nearest)
        return last[1]

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
    ``distances`` [n] are those of the calibration rows and ``usual`` [1 or T] is their median
    spread. ``kind_scores`` [m, T] are the errors, in physical units, of rows whose kind was left
    out, over their spread in units of the usual one; None where that was not tried.
    """

    method: str
    distance: LatentDistance
    floor: Tensor
    scores: Tensor
    far: float
    distances: Tensor | None = None
    usual: Tensor | None = None
    kind_scores: Tensor | None = None

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
        usual = (spread + floor).median(0).values
        scores = errors / (spread + floor)
        return cls(method, distance, floor, scores, far, distances, usual)

    def with_kinds(self, scores: Tensor) -> Uncertainty:
        """Return intervals for new kinds, too, from scores [m, T] of ``kind_errors``.

        With fewer than ``FEWEST_ROWS`` labels of a target there are none.
        """
        scores = scores[~scores.isnan().all(1)]
        if ((~scores.isnan()).sum(0) < FEWEST_ROWS).any():
            return self
        return replace(self, kind_scores=scores[:: -(-len(scores) // MOST_SCORES)].float())

    def kind_errors(self, network: object, features: Tensor, errors: Tensor) -> Tensor:
        """Return scores [m, T] of rows of a kind that this network was not trained on."""
        if self.usual is None:
            raise ValueError("this model does not know its usual spread")
        return errors * self.usual / self._unit(network, features)

    def is_shifted(self, distances: Tensor) -> bool:
        """Return whether structures with these latent distances [m] are of new kinds, together.

        A few structures must be far to be found: one alone never is.
        """
        if self.distances is None or not len(distances):
            return False
        seen = self.distances.sort().values
        below = torch.searchsorted(seen, distances) + torch.searchsorted(
            seen, distances, right=True
        )
        chance = float((below / (2 * len(seen))).mean())
        m, n = len(distances), len(seen)
        error = math.sqrt((m + n + 1) / (12 * m * n))
        return chance >= SHIFTED and chance - 0.5 > _CERTAIN * error

    def half_widths(
        self, network: object, features: Tensor, level: float = LEVEL, new: bool = False
    ) -> Tensor:
        """Return half widths of the intervals [m, T], physical units, from features [m, F].

        ``new`` asks for those of new kinds; ValueError where they were not calibrated.
        """
        columns = [column[~column.isnan()] for column in self._scores(new).T]
        quantiles = [conformal_quantile(column, level) for column in columns]
        return self.spread(network, features, new) * torch.tensor(quantiles, dtype=torch.float32)

    def spread(self, network: object, features: Tensor, new: bool = False) -> Tensor:
        """Return the unit of the scores [m, T], from features [m, F]."""
        spread = self._unit(network, features)
        return spread / self.usual if new and self.usual is not None else spread

    def _unit(self, network: object, features: Tensor) -> Tensor:
        return SPREADS[self.method](network, features, self.distance) + self.floor

    def _scores(self, new: bool) -> Tensor:
        if not new:
            return self.scores
        if self.kind_scores is None or self.usual is None:
            raise ValueError("this model has no intervals for new kinds")
        return self.kind_scores

    def below(self, scores: Tensor, column: int, new: bool = False) -> Tensor:
        """Return the probability [m] that errors of a target are below ``scores`` [m].

        ``scores`` have a sign and are in units of ``spread``. Errors of both signs are taken to be
        equally likely, and a share of 1 / (n + 1) to be larger than all that were seen. So the ends
        of an interval of level L have (1 - L) / 2 outside.
        """
        seen = self._scores(new)[:, column]
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
        } | {key: value for key in _NEWER if (value := getattr(self, key)) is not None}

    def config(self) -> dict[str, Any]:
        """Return what a bundle keeps as plain values."""
        return {"method": self.method, "level": LEVEL, "far": self.far}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Uncertainty:
        """Return the inverse of ``config()`` and ``tensors()``; KeyError names what is wrong."""
        if config["method"] not in SPREADS:
            raise KeyError(config["method"])
        distance = LatentDistance(*(tensors[key] for key in ("center", "axes", "references")))
        newer = {key: tensors[key] for key in _NEWER if key in tensors}
        return cls(config["method"], distance, tensors["floor"], tensors["scores"], config["far"],
                   **newer)  # fmt: skip
