"""Do orderings of the edges say what a prediction rests on? Removal curves and agreement.

After DeYoung et al., "ERASER", arXiv 1911.03429, for regression: an ordering is faithful if
predictions change much when its first edges go (comprehensiveness) and little when only they stay
(sufficiency). Attention is confounded with short distance, so the order by distance stands beside
every other one, and so does a random one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import kendalltau
from torch import Tensor

from matattn.attention import LayerProbe
from matattn.workflows.explain.subjects import HasSources

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the edges that are removed, or that stay
RULES = {
    "renormalised": "removed edges have no weight, and the others' sum to one again",
    "zeroed": "removed edges have no weight, and the others keep theirs",
}
RANDOM_DRAWS = 3
LEFT_OUT_EDGES = 64  # of every structure, each left out alone
LEFT_OUT_STRUCTURES = 20
IG_STEPS = 16


def edge_scores(subject: HasSources) -> dict[str, Tensor]:
    r"""Return how much each edge [E] counts, by every method that costs a few passes.

    "attention" and "value-weighted attention" are means over layers and heads. "logit gradient" is
    :math:`|\partial f / \partial \ell_e|`, "weight gradient" :math:`|\partial f / \partial s_e|`
    with a factor s = 1 of the weights, and "integrated gradients" its mean over s from 0 to 1
    (Sundararajan et al. 2017, by captum, where it is installed). "shortest first" looks at nothing
    but the distance.
    """
    seen = subject.observe()
    scores = {
        "attention": torch.stack([layer.seen.mean(1) for layer in seen]).mean(0),
        "value-weighted attention": torch.stack([s.seen_size.mean(1) for s in seen]).mean(0),
        "logit gradient": _gradient(subject, "edge_bias", 0.0).abs(),
        "weight gradient": _gradient(subject, "edge_scale", 1.0).abs(),
    }
    if (integrated := _integrated_gradients(subject)) is not None:
        scores["integrated gradients"] = integrated.abs()
    scores["shortest first"] = -subject.length
    return {name: score.detach() for name, score in scores.items()}


def _gradient(subject: HasSources, attribute: str, at: float) -> Tensor:
    """Return the derivative [E] of the predictions by an attribute of all probes."""
    point = torch.full_like(subject.length, at).requires_grad_()
    total = subject.values(subject.probes(**{attribute: point})).sum()
    return torch.autograd.grad(total, point)[0]


def _integrated_gradients(subject: HasSources) -> Tensor | None:
    """Return the mean derivative [E] by the weights' factors on the way from 0 to 1."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError:  # the extra "explain"
        return None

    def total(scales: Tensor) -> Tensor:  # [n, E] -> [n]
        return torch.stack([subject.values(subject.probes(edge_scale=s)).sum() for s in scales])

    intact = torch.ones_like(subject.length)[None]
    nothing = (~subject.removable).to(intact)[None]
    method = IntegratedGradients(total)
    return method.attribute(
        intact, nothing, n_steps=IG_STEPS, method="gausslegendre", internal_batch_size=1
    )[0].float()


def order(subject: HasSources, score: Tensor, seed: int) -> Tensor:
    """Return the rank [E] of each edge in its structure, 0 the highest score; -1 if it must stay.

    Equal scores, as of equivalent edges of a crystal, come in a random order.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(score), generator=generator)
    shuffled = shuffled[subject.removable[shuffled]]
    by_score = shuffled[score[shuffled].argsort(descending=True, stable=True)]
    by_structure = by_score[subject.graph[by_score].argsort(stable=True)]
    graph = subject.graph[by_structure]
    first = torch.searchsorted(graph, torch.arange(subject.count))
    rank = torch.full((len(score),), -1)
    rank[by_structure] = torch.arange(len(graph)) - first[graph]
    return rank


def removal_curves(subject: HasSources, rank: Tensor) -> Tensor:
    """Return |change| [B, rules, 2, shares] without the first edges, and with them only.

    At least one edge is removed, and at least one stays.
    """
    edges = torch.bincount(subject.graph[subject.removable], minlength=subject.count)
    with torch.no_grad():
        intact = subject.values()
        changes = []
        for rule in RULES:
            for keep in (False, True):
                for share in SHARES:
                    first = (share * edges).ceil().clamp(min=1)[subject.graph]
                    gone = (rank >= first) if keep else (rank >= 0) & (rank < first)
                    after = subject.values(_removal(subject, gone, rule))
                    changes.append(subject.change(intact, after))
    return torch.stack(changes, 1).unflatten(1, (len(RULES), 2, len(SHARES)))


def _removal(subject: HasSources, gone: Tensor, rule: str) -> list[LayerProbe]:
    """Return probes that remove the edges ``gone`` [E] by one of ``RULES``."""
    if rule == "renormalised":
        nothing = torch.zeros_like(subject.length)
        return subject.probes(edge_bias=nothing.masked_fill(gone, -torch.inf))
    return subject.probes(edge_scale=(~gone).to(subject.length))


def faithfulness(
    subjects: Sequence[HasSources],
    scores: Sequence[Mapping[str, Tensor]],
    seed: int,
    advance: Callable[[int], Any],
) -> dict[str, Any]:
    """Return removal curves of every ordering and of random ones, in units of the prediction.

    ``aopc`` is the mean over ``SHARES``; ``deletion_auc`` and ``insertion_auc`` are the areas under
    both curves up to the last share.
    """
    result: dict[str, Any] = {"shares": list(SHARES), "orders": {}}
    for name in [*scores[0], "random"]:
        curves = []
        for subject, by_method in zip(subjects, scores, strict=True):
            draws = range(RANDOM_DRAWS) if name == "random" else range(1)
            score = by_method.get(name, torch.zeros_like(subject.length))
            parts = [removal_curves(subject, order(subject, score, seed + n)) for n in draws]
            curves.append(torch.stack(parts).mean(0))
        advance(1)
        mean = torch.cat(curves).double().mean(0).numpy()  # [rules, 2, shares]
        result["orders"][name] = {
            rule: _described(removed, "comprehensiveness", "deletion_auc")
            | _described(kept, "sufficiency", "insertion_auc")
            for rule, (removed, kept) in zip(RULES, mean, strict=True)
        }
    return result


def _described(curve: np.ndarray, kind: str, area: str) -> dict[str, Any]:
    """Return a curve [shares] with its mean and area, under their names."""
    return {
        kind: curve.tolist(),
        f"{kind}_aopc": float(curve.mean()),
        area: float(np.trapezoid(curve, SHARES)),
    }


def left_out(subject: HasSources, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a random choice of every structure's edges, and |change| without each of them.

    One pass leaves out one edge of every one of the first ``most`` structures.
    """
    rank = order(subject, torch.zeros_like(subject.length), seed)
    near = (subject.graph < most) & (rank >= 0) & (rank < LEFT_OUT_EDGES)
    effect = torch.full_like(subject.length, torch.nan)
    with torch.no_grad():
        intact = subject.values()
        for number in range(int(rank[near].max()) + 1 if near.any() else 0):
            gone = near & (rank == number)
            after = subject.values(_removal(subject, gone, "renormalised"))
            effect[gone] = subject.change(intact, after)[subject.graph[gone]]
    edges = near.nonzero()[:, 0]
    return edges, effect[edges]


def agreement(
    subjects: Sequence[HasSources], scores: Sequence[Mapping[str, Tensor]], seed: int
) -> dict[str, Any]:
    """Return how far methods agree on the order of a structure's edges, leave-one-out among them.

    Mean over structures of Kendall's tau, of the Jensen-Shannon divergence of the normalised scores
    (nats), and of the share that both have among their first tenth.
    """
    table: dict[str, dict[str, list[float]]] = {}
    most = LEFT_OUT_STRUCTURES
    for subject, by_method in zip(subjects, scores, strict=True):
        edges, effect = left_out(subject, most, seed)
        most -= min(most, subject.count)
        for graph in subject.graph[edges].unique():
            chosen = subject.graph[edges] == graph
            columns = {name: score[edges[chosen]].numpy() for name, score in by_method.items()}
            columns["leaving one out"] = effect[chosen].numpy()
            for a, b in combinations(columns, 2):
                cell = table.setdefault(f"{a} | {b}", {"tau": [], "jsd": [], "overlap": []})
                for key, value in _compare(columns[a], columns[b]).items():
                    cell[key].append(value)
    return {
        pair: {key: _mean(values) for key, values in cell.items()} for pair, cell in table.items()
    }


def _compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return three measures of agreement of two scores of the same edges; NaN where undefined."""
    tau = kendalltau(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan
    shares = all(x.min() >= 0 and x.sum() > 0 for x in (a, b))  # not of lengths
    first = max(1, len(a) // 10)
    best_a, best_b = (set(np.argsort(-x, kind="stable")[:first].tolist()) for x in (a, b))
    return {
        "tau": float(tau),
        "jsd": float(jensenshannon(a, b) ** 2) if shares else np.nan,
        "overlap": len(best_a & best_b) / first,
    }


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean of the values that are defined, if any."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else None
