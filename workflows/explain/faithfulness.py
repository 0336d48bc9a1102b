"""Do orderings of the edges say what a prediction rests on? Removal curves and agreement.

After DeYoung et al., "ERASER", arXiv 1911.03429, for regression: an ordering is faithful if
predictions change much when its first edges go (comprehensiveness) and little when only they stay
(sufficiency). Attention is confounded with short distance, so the order by distance stands beside
every other one, and so does a random one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import kendalltau
from torch import Tensor

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
    r"""How much each edge [E] counts, by every method that costs a few passes.

    "attention" and "value-weighted attention" are means over layers and heads. "logit gradient" is
    :math:`|\partial f / \partial \ell_e|`, "weight gradient" :math:`|\partial f / \partial s_e|`
    with a factor s = 1 of the weights, and "integrated gradients" its mean over s from 0 to 1
    (Sundararajan et al. 2017, by captum, where it is installed). "shortest first" looks at nothing
    but the distance.
    """
    seen = subject.observe()
    scores = {
        "attention": torch.stack([cast(Tensor, p.seen).mean(1) for p in seen]).mean(0),
        "value-weighted attention": torch.stack(
            [cast(Tensor, p.seen_size).mean(1) for p in seen]
        ).mean(0),
        "logit gradient": _gradient(subject, "edge_bias", 0.0).abs(),
        "weight gradient": _gradient(subject, "edge_scale", 1.0).abs(),
    }
    if (integrated := _integrated_gradients(subject)) is not None:
        scores["integrated gradients"] = integrated.abs()
    scores["shortest first"] = -subject.length
    return {name: score.detach() for name, score in scores.items()}


def _gradient(subject: HasSources, where: str, at: float) -> Tensor:
    point = torch.full_like(subject.length, at).requires_grad_()
    total = subject.values(subject.probes(**{where: point})).sum()
    return torch.autograd.grad(total, point)[0]


def _integrated_gradients(subject: HasSources) -> Tensor | None:
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
    """Rank [E] of each removable edge among those of its structure, 0 the highest score; others -1.

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
    """|Change| [B, rules, 2, shares] of the prediction without the first edges, and with them only.

    At least one edge is removed, and at least one stays.
    """
    edges = torch.bincount(subject.graph[subject.removable], minlength=subject.count)
    with torch.no_grad():
        intact = subject.values()
        found = []
        for rule in RULES:
            for keep in (False, True):
                for share in SHARES:
                    first = (share * edges).ceil().clamp(min=1)[subject.graph]
                    gone = (rank >= first) if keep else (rank >= 0) & (rank < first)
                    after = subject.values(_removal(subject, gone, rule))
                    found.append(subject.change(intact, after))
    return torch.stack(found, 1).unflatten(1, (len(RULES), 2, len(SHARES)))


def _removal(subject: HasSources, gone: Tensor, rule: str) -> list[Any]:
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
    """Removal curves of every ordering and of random ones, in the units of the prediction.

    ``aopc`` is the mean over ``SHARES``; ``deletion_auc`` and ``insertion_auc`` are the areas under
    both curves up to the last share.
    """
    result: dict[str, Any] = {"shares": list(SHARES), "orders": {}}
    for name in [*scores[0], "random"]:
        curves = []
        for subject, found in zip(subjects, scores, strict=True):
            draws = range(RANDOM_DRAWS) if name == "random" else range(1)
            score = found.get(name, torch.zeros_like(subject.length))
            parts = [removal_curves(subject, order(subject, score, seed + n)) for n in draws]
            curves.append(torch.stack(parts).mean(0))
        advance(1)
        mean = torch.cat(curves).double().mean(0).numpy()  # [rules, 2, shares]
        result["orders"][name] = {}
        for rule, both in zip(RULES, mean, strict=True):
            result["orders"][name][rule] = {}
            kinds = (("comprehensiveness", "deletion_auc"), ("sufficiency", "insertion_auc"))
            for (kind, area), curve in zip(kinds, both, strict=True):
                result["orders"][name][rule] |= {
                    kind: curve.tolist(),
                    f"{kind}_aopc": float(curve.mean()),
                    area: float(np.trapezoid(curve, SHARES)),
                }
    return result


def left_out(subject: HasSources, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Edges, a random choice of every structure's, and |change| of the prediction without each.

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
    """How far methods agree on the order of the edges of a structure, leaving-one-out among them.

    Mean over structures of Kendall's tau, of the Jensen-Shannon divergence of the normalised scores
    (nats), and of the share that both have among their first tenth.
    """
    table: dict[str, dict[str, list[float]]] = {}
    most = LEFT_OUT_STRUCTURES
    for subject, found in zip(subjects, scores, strict=True):
        edges, effect = left_out(subject, most, seed)
        most -= min(most, subject.count)
        for graph in subject.graph[edges].unique():
            chosen = subject.graph[edges] == graph
            columns = {name: score[edges[chosen]].numpy() for name, score in found.items()}
            columns["leaving one out"] = effect[chosen].numpy()
            for a, b in combinations(columns, 2):
                cell = table.setdefault(f"{a} | {b}", {"tau": [], "jsd": [], "overlap": []})
                for key, value in _compare(columns[a], columns[b]).items():
                    cell[key].append(value)
    return {
        pair: {key: _mean(values) for key, values in cell.items()} for pair, cell in table.items()
    }


def _compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
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
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None
