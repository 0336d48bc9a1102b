"""Explain the predictions of a network by its attention, and check the explanation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition, Element

from matattn.attention import AttentionRecord
from matattn.errors import ExplanationError
from matattn.runtime import plain_torch
from matattn.structures.ensemble import Ensemble
from matattn.structures.neighbors import SELF
from matattn.workflows.explain import checks, faithfulness, heads
from matattn.workflows.explain.subjects import means
from matattn.workflows.structures import other_attention, standard_model
from matattn.workflows.structures.explained import ExplainedBatch, explained_network, prepare
from matattn.workflows.structures.predict import Predictor
from matattn.workflows.structures.scene import scene, strongest

SHOWN = 10  # structures whose attention is stored and drawn
BIN, FARTHEST = 0.25, 10.0  # Å, of the curves over distance
Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Explanation:
    """The content of ``explanation.json`` for crystals or molecules, key by key."""

    network: str
    target: str
    unit: str
    explained_member: int | None  # of an ensemble, from 1 on
    data: str  # where the structures come from
    data_hash: str
    seed: int
    mean_absolute_error: float | None  # None without labels
    removal_rules: dict[str, str]
    structures: list[dict[str, Any]]
    attention: dict[str, Any]
    heads: dict[str, Any]
    faithfulness: dict[str, Any]
    agreement: dict[str, Any]
    checks: dict[str, Any]
    shuffled_weights: dict[str, Any]
    comparisons: dict[str, Any]
    standard_model: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A structure with what is predicted and seen of it."""

    item: Mapping[str, Any]
    value: float
    error: float  # absolute; NaN without a label
    record: AttentionRecord
    gradient: np.ndarray  # [E] |df / d logit| of every edge

    @property
    def symbols(self) -> np.ndarray:
        """Return the element symbol [N] of every atom."""
        return np.array([Element.from_Z(z).symbol for z in self.item["z"].tolist()])

    @property
    def formula(self) -> str:
        """Return the formula of all atoms."""
        return Composition(Counter(self.symbols.tolist())).formula

    def entry(self) -> dict[str, Any]:
        """Return what is stored of every structure."""
        error = None if np.isnan(self.error) else self.error
        return {"id": self.item["id"], "formula": self.formula, "value": self.value, "error": error}

    def graph(self) -> dict[str, Any]:
        """Return the strongest edges, as stored of the structures that are drawn."""
        chosen = strongest(self.record)
        kept = self.record.part(chosen)
        return {
            "edge_index": [kept.source.tolist(), kept.target.tolist()],
            "shift": None if kept.image is None else kept.image.tolist(),
            "length_A": np.round(kept.length, 4).tolist(),
            "attention": np.round(kept.weight, 5).tolist(),
            "value_weighted": None if kept.size is None else np.round(kept.size, 5).tolist(),
            "logit_gradient": np.round(self.gradient[chosen], 6).tolist(),
            "edges_in_all": len(self.record.length),
        }


@plain_torch()
def structures(
    predictor: Predictor,
    items: Sequence[Mapping[str, Any]],
    data: str,
    target: str | None = None,
    others: Mapping[str, Predictor] | None = None,
    seed: int = 0,
    advance: Advance = lambda steps: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an ``Explanation`` of crystals or molecules by key, and scenes for the report.

    ``items`` have keys id, z, pos, cell and perhaps y; ``data`` says where they come from.
    ``others`` are networks to compare, such as the same one trained with other seeds. ``advance``
    is called with the number of finished steps (``steps`` in all).

    Raises ExplanationError for what cannot be explained.
    """
    if not items:
        raise ExplanationError("no structure to explain: give at least one")
    subjects = list(prepare(predictor, items, target))
    column = predictor.targets[subjects[0].column]
    rivals = {
        name: list(prepare(other, items, column["name"])) for name, other in (others or {}).items()
    }
    scores = [faithfulness.edge_scores(subject) for subject in subjects]
    advance(1)
    samples = _samples(items, subjects, scores)
    errors = np.array([sample.error for sample in samples])
    comparisons = {name: standard_model.compare(subjects, rival) for name, rival in rivals.items()}
    explanation = Explanation(
        network=type(subjects[0].network).__name__,
        target=column["name"],
        unit=column["unit"],
        explained_member=1 if isinstance(predictor.network, Ensemble) else None,
        data=data,
        data_hash=_fingerprint(items),
        seed=seed,
        mean_absolute_error=None if np.isnan(errors).all() else float(np.nanmean(errors)),
        removal_rules=faithfulness.RULES,
        structures=[
            sample.entry() | ({"graph": sample.graph()} if number < SHOWN else {})
            for number, sample in enumerate(samples)
        ],
        attention=_attention(subjects, samples),
        heads=heads.heads(subjects, advance),
        faithfulness=faithfulness.faithfulness(subjects, scores, seed, advance),
        agreement=faithfulness.agreement(subjects, scores, seed),
        checks=other_attention.attention_matters(subjects, seed, advance),
        shuffled_weights=checks.depends_on_weights(
            subjects, faithfulness.edge_scores, scores, seed, advance
        ),
        comparisons=comparisons,
        standard_model=_standard_model(subjects, rivals, comparisons),
    )
    return vars(explanation), [_scene(sample, column) for sample in samples[:SHOWN]]


def steps(predictor: Predictor) -> int:
    """Return how many steps ``structures`` advances by."""
    layers = explained_network(predictor.network).attention_layers()
    orders, replaced = 7, 3  # of faithfulness; by another attention
    return 1 + heads.steps(layers) + orders + replaced + len(layers)


def _samples(
    items: Sequence[Mapping[str, Any]],
    subjects: Sequence[ExplainedBatch],
    scores: Sequence[Mapping[str, torch.Tensor]],
) -> list[Sample]:
    """Return the items of all batches with what is predicted and seen of them."""
    intact = heads.Prediction(subjects)
    values = [s.mean(v) for s, v in zip(subjects, intact.values, strict=True)]
    records = [record for subject in subjects for record in subject.records()]
    gradients = [
        score["logit gradient"][subject.graph == number].numpy()
        for subject, score in zip(subjects, scores, strict=True)
        for number in range(subject.count)
    ]
    columns = torch.cat(values).tolist(), intact.error.tolist(), records, gradients
    return [Sample(*row) for row in zip(items, *columns, strict=True)]


def _fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
    """Return a SHA-256 of the structures, to tell what was explained."""
    digest = hashlib.sha256()
    for item in items:
        for key in ("z", "pos", "cell"):
            digest.update(item[key].contiguous().numpy().data)
    return digest.hexdigest()


def _scene(sample: Sample, column: Mapping[str, str]) -> dict[str, Any]:
    """Return a sample as the report's viewer draws it, with its value of the explained column."""
    value = f"{column['name']} {sample.value:.4g} {column['unit']}."
    return scene(f"{sample.item['id']} ({sample.formula})", value, sample.item, sample.record)


def _attention(subjects: Sequence[ExplainedBatch], samples: Sequence[Sample]) -> dict[str, Any]:
    """Return attention between species and against distance; atoms count alike in the means."""
    species, between = standard_model.effective_attention(subjects)
    atoms = np.array([len(sample.item["z"]) for sample in samples], dtype=float)
    share = atoms / atoms.sum()
    entropy = [sample.record.entropy() for sample in samples]
    reach = [sample.record.effective_range() for sample in samples]
    return {
        "species": species,
        "between_species": between.tolist(),
        "entropy_nats": np.einsum("s,slh->lh", share, entropy).tolist(),
        "effective_range_A": np.einsum("s,slh->lh", share, reach).tolist(),
        "by_distance": _by_distance(samples),
    }


def _by_distance(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return mean weights [L, H, bins] by pair of species, the most frequent first."""
    reach = max(float(sample.record.length.max()) for sample in samples)
    edges = np.arange(0, min(reach, FARTHEST) + BIN, BIN)
    totals: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for sample in samples:
        record, symbols = sample.record, sample.symbols
        pairs = np.char.add(np.char.add(symbols[record.target], "–"), symbols[record.source])
        far = record.length >= SELF
        for pair in np.unique(pairs[far]):
            total, count = record.part(far & (pairs == pair)).by_length(edges)
            totals[pair] = totals.get(pair, 0) + total
            counts[pair] = counts.get(pair, 0) + count
    frequent = sorted(totals, key=lambda pair: -counts[pair].sum())
    curves = {pair: means(totals[pair], counts[pair]) for pair in frequent}
    return {"middle_A": (edges[:-1] + BIN / 2).tolist(), "pairs": curves}


def _standard_model(
    subjects: Sequence[ExplainedBatch],
    rivals: Mapping[str, Sequence[ExplainedBatch]],
    comparisons: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return tables of the law; networks whose heads could be matched count as further seeds."""
    orders = {name: compared["matched_heads"] for name, compared in comparisons.items()}
    alike = {name: np.array(order) for name, order in orders.items() if order is not None}
    networks = [subjects[0].network, *(rivals[name][0].network for name in alike)]
    return {
        "networks": len(networks),
        "constants": standard_model.law_table(networks, subjects, list(alike.values())),
        "node_features": standard_model.node_features(subjects),
    }
