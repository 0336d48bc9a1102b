"""How much the heads of a network matter: derivatives, ablation as the truth, and pruning.

Importance after Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?",
arXiv 1905.10650: I_h = E |dL / dxi_h|, with a gate xi_h = 1 on the output of head h. For a mean
absolute error that is E |df / dxi_h|, in the units of the prediction f, labels or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from matattn.attention import AttentionLayer
from matattn.workflows.explain.subjects import HasHeads, over

Advance = Callable[[int], Any]
RANDOM_ORDERS = 5


def shape_of(layers: Sequence[AttentionLayer]) -> tuple[int, int]:
    """Return L and H."""
    return len(layers), len(layers[0].projection)


def steps(layers: Sequence[AttentionLayer]) -> int:
    """Return how often ``heads`` advances."""
    return math.prod(shape_of(layers)) * (2 + RANDOM_ORDERS)


def importance(subject: HasHeads, gate: Tensor) -> Tensor:
    """Return |df / dxi| [B, L, H] of every structure and head, where heads have gates [L, H]."""
    return subject.slopes(gate) * (gate != 0)


def heads(subjects: Sequence[HasHeads], advance: Advance) -> dict[str, Any]:
    """Return importance, ablation and pruning of the heads of one network.

    Heads are ranked on every other structure, and what that ranking is worth is measured on the
    rest: ``ablation`` is the mean |change| of the prediction without one head, ``error_increase``
    that of the mean absolute error (None without labels).
    """
    shape = shape_of(subjects[0].layers)
    ones = torch.ones(shape)
    rank_on, measure_on = (np.arange(sum(s.count for s in subjects)) % 2 == k for k in (0, 1))
    if not measure_on.any():
        measure_on = rank_on
    slope = over(subjects, lambda s: importance(s, ones))
    intact = Prediction(subjects)
    change, error = np.zeros(shape), np.zeros(shape)
    for head in np.ndindex(*shape):
        gate = ones.clone()
        gate[head] = 0
        changes, errors = intact.with_gates(gate)
        change[head], error[head] = changes[measure_on].mean(), errors[measure_on].mean()
        advance(1)
    before = intact.error[measure_on].mean()
    ranked = slope[rank_on].mean(0)
    result = {
        "importance": slope.mean(0).tolist(),
        "ablation": change.tolist(),
        "error_increase": None if np.isnan(before) else (error - before).tolist(),
        "spearman_importance_ablation": _spearman(ranked, change),
        "spearman_importance_error": _spearman(ranked, error - before),
        "measured_on": int(measure_on.sum()),
    }
    return result | {"pruning": prune(subjects, intact, rank_on, measure_on, advance)}


class Prediction:
    """The predictions of intact heads, and how far off predictions are without some."""

    def __init__(self, subjects: Sequence[HasHeads]) -> None:
        self.subjects = subjects
        with torch.no_grad():
            self.values = [subject.values() for subject in subjects]
        errors = [s.error(v) for s, v in zip(subjects, self.values, strict=True)]
        self.error = torch.cat(errors).double().numpy()

    def with_gates(self, gate: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return |change| and error of every structure where heads have gates [L, H]."""
        changes, errors = [], []
        with torch.no_grad():
            for subject, before in zip(self.subjects, self.values, strict=True):
                after = subject.values(subject.gates(gate))
                changes.append(subject.change(before, after))
                errors.append(subject.error(after))
        return torch.cat(changes).double().numpy(), torch.cat(errors).double().numpy()


def prune(
    subjects: Sequence[HasHeads],
    intact: Prediction,
    rank_on: np.ndarray,
    measure_on: np.ndarray,
    advance: Advance,
) -> dict[str, Any]:
    """Remove heads one after the other, the least important first, against random orders."""
    shape = shape_of(subjects[0].layers)
    total = shape[0] * shape[1]
    removed = _order(subjects, rank_on)
    orders = [np.random.default_rng(n).permutation(total).tolist() for n in range(RANDOM_ORDERS)]
    curves = []
    for order in [removed, *orders]:
        gate = torch.ones(shape)
        points = [(0.0, float(intact.error[measure_on].mean()))]
        for head in order:
            gate.view(-1)[head] = 0
            changes, errors = intact.with_gates(gate)
            points.append((float(changes[measure_on].mean()), float(errors[measure_on].mean())))
            advance(1)
        curves.append(points)
    by_importance, at_random = np.array(curves[0]), np.array(curves[1:])
    labelled = not np.isnan(by_importance).any()
    return {
        "order": [[n // shape[1], n % shape[1]] for n in removed],
        "change": by_importance[:, 0].tolist(),
        "change_random": at_random[..., 0].mean(0).tolist(),
        "error": by_importance[:, 1].tolist() if labelled else None,
        "error_random": at_random[..., 1].mean(0).tolist() if labelled else None,
        "random_orders": RANDOM_ORDERS,
    }


def _order(subjects: Sequence[HasHeads], rank_on: np.ndarray) -> list[int]:
    """Return the heads in the order in which they are removed, the least important first.

    Importance is measured again, with the heads that are left, after each tenth of them.
    """
    gate = torch.ones(shape_of(subjects[0].layers))
    again = max(1, round(gate.numel() / 10))
    removed: list[int] = []
    ranked: list[int] = []
    for step in range(gate.numel()):
        if step % again == 0:
            slope = over(subjects, partial(importance, gate=gate))[rank_on].mean(0)
            slope[gate.numpy() == 0] = np.inf
            ranked = np.argsort(slope, axis=None).tolist()
        removed.append(ranked.pop(0))
        gate.view(-1)[removed[-1]] = 0
    return removed


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the rank correlation; None where it is not defined."""
    if np.isnan(b).any() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b, axis=None).statistic)
