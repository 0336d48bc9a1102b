"""Could the attention be another? Predictions under uniform, permuted and adversarial weights.

Jain and Wallace, "Attention is not Explanation", arXiv 1902.10186.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import softmax

from matattn.attention import LayerProbe
from matattn.workflows.structures.explained import ExplainedBatch

MAX_JSD = math.log(2)  # nats, between distributions that share nothing
ADVERSARY_STEPS, ADVERSARY_LR = 60, 0.3
TOLERANCE = 0.01  # of the standard deviation of the labels: a change that does not count


def attention_matters(
    subjects: Sequence[ExplainedBatch], seed: int, advance: Callable[[int], Any]
) -> dict[str, Any]:
    """Return the mean |change| of predictions under another attention, and how far that is.

    "uniform" weighs all edges of an atom alike; "permuted" gives them each other's weights, anew in
    each layer and head; "adversarial" is the farthest attention that was found whose predictions
    change by at most ``tolerance``. Changes are in units of the prediction. ``jsd`` is the mean
    Jensen-Shannon divergence from the network's own weights, in nats, at most ln 2. An adversarial
    attention that is nearly as far as a permuted one says that the weights alone do not determine
    the prediction.
    """
    kinds: dict[str, Callable[[ExplainedBatch, list[Tensor]], Tensor]] = {
        "uniform": lambda s, own: _measure(s, own, [_softmax(s, torch.zeros_like(w)) for w in own]),
        "permuted": lambda s, own: _measure(s, own, [_permuted(s, w, seed) for w in own]),
        "adversarial": _adversarial,
    }
    own = [[layer.seen for layer in subject.observe()] for subject in subjects]
    result: dict[str, Any] = {
        "max_jsd": MAX_JSD,
        "tolerance": TOLERANCE * subjects[0].scale,
    }
    for name, kind in kinds.items():
        pairs = torch.cat([kind(s, w) for s, w in zip(subjects, own, strict=True)])
        change, distance = pairs.double().mean(0).tolist()
        result[name] = {"change": change, "jsd": distance}
        advance(1)
    return result


def _measure(subject: ExplainedBatch, own: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return |change| and divergence [B, 2] with ``weights`` in place of the network's own."""
    with torch.no_grad():
        other = subject.values([LayerProbe(weights=layer) for layer in weights])
        change = subject.change(subject.values(), other)
    return torch.stack([change, _divergence(subject, own, weights)], 1)


def _softmax(subject: ExplainedBatch, logits: Tensor) -> Tensor:
    """Return weights [E, H] that sum to one at every target."""
    return softmax(logits, subject.batch.edge_index[1], num_nodes=len(subject.batch.z))


def _permuted(subject: ExplainedBatch, weights: Tensor, seed: int) -> Tensor:
    """Return the weights [E, H] of every target and head in another order."""
    generator = torch.Generator().manual_seed(seed)
    target = subject.batch.edge_index[1]
    by_target = target.argsort(stable=True)
    columns = []
    for column in weights.unbind(1):
        shuffled = torch.randperm(len(column), generator=generator)
        shuffled = shuffled[target[shuffled].argsort(stable=True)]
        other = torch.empty_like(column)
        other[by_target] = column[shuffled]
        columns.append(other)
    return torch.stack(columns, 1)


def _divergence(subject: ExplainedBatch, one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """Return the mean Jensen-Shannon divergence [B] over layers, heads and targets, nats."""
    per_edge = []
    for a, b in zip(one, two, strict=True):
        middle = (a + b) / 2
        per_edge.append(((_xlog(a, middle) + _xlog(b, middle)) / 2).mean(1))
    total = torch.stack(per_edge).mean(0)
    summed = total.new_zeros(subject.count).index_add(0, subject.graph, total)
    return summed / torch.bincount(subject.batch.batch)


def _xlog(a: Tensor, middle: Tensor) -> Tensor:
    """Return a ln(a / middle), 0 where a is 0, with finite derivatives."""
    tiny = torch.finfo(a.dtype).tiny
    return a * (a.clamp(min=tiny).log() - middle.clamp(min=tiny).log())


def _adversarial(subject: ExplainedBatch, own: list[Tensor]) -> Tensor:
    """Return |change| and divergence [B, 2] of the farthest attention with nearly no change.

    It is found by gradient ascent on the divergence with a penalty for the change of the
    prediction. Of every structure the farthest attention within the tolerance counts.
    """
    tolerance = TOLERANCE * subject.scale
    with torch.no_grad():
        intact = subject.values()
    generator = torch.Generator().manual_seed(0)
    tiny = torch.finfo(own[0].dtype).tiny
    logits = [
        (w.clamp(min=tiny).log() + 0.1 * torch.randn(w.shape, generator=generator)).requires_grad_()
        for w in own
    ]
    optimizer = torch.optim.Adam(logits, lr=ADVERSARY_LR)
    best = torch.zeros(subject.count, 2)
    for _ in range(ADVERSARY_STEPS):
        weights = [_softmax(subject, layer) for layer in logits]
        after = subject.values([LayerProbe(weights=layer) for layer in weights])
        change = subject.mean((after - intact).abs())
        distance = _divergence(subject, own, weights)
        better = (change <= tolerance) & (distance > best[:, 1])
        best[better] = torch.stack([change, distance], 1).detach()[better]
        loss = ((change / tolerance - 0.5).clamp(min=0) - 20 * distance).sum()
        gradients = torch.autograd.grad(loss, logits)
        for layer, gradient in zip(logits, gradients, strict=True):
            layer.grad = gradient
        optimizer.step()
    return best
