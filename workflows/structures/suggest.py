r"""The next structures to label: those that promise most, unlike each other.

A goal wants large or small values. Structures are ranked by expected improvement over the best
label so far (Jones, Schonlau, Welch, Journal of Global Optimization 13, 455 (1998)):

.. math:: EI = (\mu - y^*) \Phi(z) + \sigma \phi(z), \qquad z = (\mu - y^*) / \sigma

with sigma from the model's interval, of new kinds where the pool is of such. Without a goal the
width of the interval counts: what the model knows least. A batch is chosen one by one; what is near
a chosen structure counts less:

.. math:: a_i \left(1 - e^{-(d_i / l)^2}\right)

with d the distance to the nearest chosen one in the network's features, and l a quarter of the
median distance between candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from matattn.errors import BundleError, ConfigError
from matattn.tables import Row
from matattn.workflows.structures.pool import Pool
from matattn.workflows.structures.predict import Predictor

_WIDTH = 1.6448536  # standard deviations from the middle of a Gaussian's 90 % interval to its end
_SAMPLE = 1000  # candidates that tell how far they are from each other
_CANDIDATES = 20  # times the wanted number: only the best of them are compared with each other


@dataclass(frozen=True)
class Goal:
    """What is wanted of a target: ``sign`` 1 for large values, -1 for small, 0 to learn most.

    ``best`` is the best label so far; None without one: the best prediction stands for it.
    """

    target: str
    sign: int
    best: float | None = None


@dataclass(frozen=True)
class Suggestion:
    """A batch: indices into the pool, best first, and what was known of every structure [n].

    ``better`` is the number of structures of the pool that are expected to be better than ``best``.
    """

    chosen: np.ndarray
    values: np.ndarray
    deviations: np.ndarray
    score: np.ndarray
    best: float | None
    better: float | None

    def rows(self, pool: Pool, goal: Goal, unit: str) -> list[Row]:
        """Return a row for each structure of the batch."""
        return [
            {
                "rank": rank,
                **pool.names[index],
                goal.target: float(self.values[index]),
                f"{goal.target}_deviation": float(self.deviations[index]),
                f"{goal.target}_unit": unit,
                "score": float(self.score[index]),
            }
            for rank, index in enumerate(self.chosen.tolist(), start=1)
        ]


def suggest(predictor: Predictor, pool: Pool, goal: Goal, number: int) -> Suggestion:
    """Choose the next ``number`` structures of a pool.

    Raises ConfigError for an unknown target, BundleError for a model without intervals.
    """
    names = [target["name"] for target in predictor.targets]
    if goal.target not in names:
        raise ConfigError(f"{goal.target}: this model predicts {', '.join(names)}")
    if predictor.uncertainty is None:
        raise BundleError("this model has no intervals, so nothing says what it knows least")
    column = names.index(goal.target)
    values = predictor.values(pool.features)[:, column]
    new = predictor.are_new(pool.features)
    deviations = predictor.half_widths(pool.features, new=new)[:, column] / _WIDTH
    if goal.sign == 0:
        best, better, score = None, None, deviations
    else:
        best = goal.best if goal.best is not None else goal.sign * (goal.sign * values).max()
        score = expected_improvement(values, deviations, best, goal.sign)
        better = float(ndtr(goal.sign * (values - best) / deviations).sum())
    chosen = diverse(score, pool.points(predictor), number)
    return Suggestion(chosen, values, deviations, score, best, better)


def expected_improvement(
    values: np.ndarray, deviations: np.ndarray, best: float, sign: int
) -> np.ndarray:
    """Return how much better than ``best`` a Gaussian label is expected to be [n]."""
    gain = sign * (values - best)
    z = gain / deviations
    return gain * ndtr(z) + deviations * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def diverse(score: np.ndarray, points: Tensor, number: int) -> np.ndarray:
    """Return indices of large scores [n], >= 0, whose points [n, K] are not near each other."""
    candidates = np.argsort(-score, kind="stable")[: _CANDIDATES * number]
    number = min(number, len(candidates))
    points = points[candidates]
    some = points[:: -(-len(points) // _SAMPLE)]
    length = max(0.25 * float(torch.cdist(some, some).median()), 1e-9)  # copies have no distance
    weight = torch.ones(len(candidates), dtype=torch.float64)
    worth = torch.from_numpy(score[candidates]).double()
    chosen: list[int] = []
    for _ in range(number):
        left = worth * weight
        left[chosen] = -torch.inf
        chosen.append(int(left.argmax()))
        near = (points - points[chosen[-1]]).norm(dim=1).double()
        weight = torch.minimum(weight, 1 - torch.exp(-((near / length) ** 2)))
    return candidates[chosen]
