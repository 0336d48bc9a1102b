"""Explain the predictions of a network by its attention, and check the explanation.

``structures`` measures, and ``write`` fills a folder with ``explanation.json`` and ``report.html``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition, Element

from matattn.attention import AttentionRecord
from matattn.errors import ExplanationError
from matattn.structures.ensemble import Ensemble
from matattn.structures.neighbors import SELF
from matattn.workflows.explain import checks, faithfulness, heads
from matattn.workflows.structures import other_attention, standard_model
from matattn.workflows.structures.explained import ExplainedBatch, explained_network, prepare
from matattn.workflows.structures.predict import Predictor
from matattn.workflows.structures.scene import scene, strongest

SHOWN = 10  # structures whose attention is stored and drawn
BIN = 0.25  # Å, of the curves over distance
Advance = Callable[[int], Any]


def structures(
    predictor: Predictor,
    items: Sequence[Mapping[str, Any]],
    data: str,
    target: str | None = None,
    others: Mapping[str, Predictor] | None = None,
    seed: int = 0,
    advance: Advance = lambda steps: None,
) -> tuple[dict[str, Any], list[Any]]:
    """What ``explanation.json`` holds of crystals or molecules, and scenes for the report.

    ``items`` have keys id, z, pos, cell and perhaps y; ``data`` says where they come from.
    ``others`` are networks to compare, such as the same one trained with other seeds. ``advance``
    is called with the number of finished steps (``steps`` in all).

    Raises ExplanationError for what cannot be explained.
    """
    if not items:
        raise ExplanationError("no structure to explain")
    subjects = list(prepare(predictor, items, target))
    network = subjects[0].network
    described = predictor.targets[subjects[0].column]
    rival_subjects = {
        name: list(prepare(other, items, described["name"]))
        for name, other in (others or {}).items()
    }
    intact = heads.Prediction(subjects)
    values = torch.cat([s.mean(v) for s, v in zip(subjects, intact.values, strict=True)])
    errors = intact.error
    scores = [faithfulness.edge_scores(subject) for subject in subjects]
    advance(1)
    records = [record for subject in subjects for record in subject.records()]
    comparisons = {
        name: standard_model.compare(subjects, rivals) for name, rivals in rival_subjects.items()
    }
    labelled = not np.isnan(errors).all()
    result: dict[str, Any] = {
        "network": type(network).__name__,
        "target": described["name"],
        "unit": described["unit"],
        "explained_member": 1 if isinstance(predictor.network, Ensemble) else None,
        "data": data,
        "data_hash": _fingerprint(items),
        "seed": seed,
        "mean_absolute_error": float(np.nanmean(errors)) if labelled else None,
        "removal_rules": faithfulness.RULES,
        "structures": [
            {"id": item["id"], "formula": _formula(item), "value": float(value),
             "error": None if np.isnan(error) else float(error)}
            for item, value, error in zip(items, values, errors, strict=True)
        ],
        "attention": _attention(subjects, records),
        "heads": heads.heads(subjects, advance),
        "faithfulness": faithfulness.faithfulness(subjects, scores, seed, advance),
        "agreement": faithfulness.agreement(subjects, scores, seed),
        "checks": other_attention.attention_matters(subjects, seed, advance),
        "shuffled_weights": checks.depends_on_weights(
            subjects, faithfulness.edge_scores, scores, seed, advance
        ),
        "comparisons": comparisons,
        "standard_model": _standard_model(subjects, rival_subjects, comparisons),
    }  # fmt: skip
    gradients = [score["logit gradient"] for score in scores]
    _store_graphs(result, subjects, records, gradients)
    scenes = [
        scene(
            f"{entry['id']} ({entry['formula']})",
            f"{described['name']} {entry['value']:.4g} {described['unit']}.",
            item,
            record,
        )
        for entry, item, record in list(zip(result["structures"], items, records, strict=True))[
            :SHOWN
        ]
    ]
    return result, scenes


def steps(predictor: Predictor) -> int:
    """How many steps ``structures`` advances by."""
    layers = explained_network(predictor.network).attention_layers()
    orders, replaced = 7, 3  # of faithfulness; by another attention
    return 1 + heads.steps(layers) + orders + replaced + len(layers)


def _fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the structures, to tell what was explained."""
    digest = hashlib.sha256()
    for item in items:
        for key in ("z", "pos", "cell"):
            digest.update(item[key].contiguous().numpy().data)
    return digest.hexdigest()


def _formula(item: Mapping[str, Any]) -> str:
    return Composition(Counter(Element.from_Z(z).symbol for z in item["z"].tolist())).formula


def _attention(
    subjects: Sequence[ExplainedBatch], records: Sequence[AttentionRecord]
) -> dict[str, Any]:
    species, between = standard_model.effective_attention(subjects)
    elements = [
        np.array([Element.from_Z(z).symbol for z in subject.batch.z[subject.batch.batch == n]])
        for subject in subjects
        for n in range(subject.count)
    ]
    reach = max(float(record.length.max()) for record in records)
    edges = np.arange(0, min(reach, 10.0) + BIN, BIN)
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for record, symbols in zip(records, elements, strict=True):
        names = np.char.add(np.char.add(symbols[record.target], "–"), symbols[record.source])
        far = record.length >= SELF
        for name in np.unique(names[far]):
            total, count = record.part(far & (names == name)).by_length(edges)
            sums[name] = sums.get(name, 0) + total
            counts[name] = counts.get(name, 0) + count
    common = sorted(sums, key=lambda name: -counts[name].sum())
    curves = {}
    for name in common:
        with np.errstate(invalid="ignore"):
            mean = (sums[name] / counts[name]).astype(object)
        mean[..., counts[name] == 0] = None  # JSON knows no NaN
        curves[name] = mean.tolist()
    atoms = np.array([len(symbols) for symbols in elements], dtype=float)
    share = atoms / atoms.sum()
    return {
        "species": species,
        "between_species": between.tolist(),
        "entropy_nats": np.einsum("s,slh->lh", share, [r.entropy() for r in records]).tolist(),
        "effective_range_A": np.einsum(
            "s,slh->lh", share, [r.effective_range() for r in records]
        ).tolist(),
        "by_distance": {"middle_A": (edges[:-1] + BIN / 2).tolist(), "pairs": curves},
    }


def _standard_model(
    subjects: Sequence[ExplainedBatch],
    rivals: Mapping[str, Sequence[ExplainedBatch]],
    comparisons: Mapping[str, Any],
) -> dict[str, Any]:
    """Tables of the law; networks whose heads could be matched count as further seeds."""
    alike = [name for name, found in comparisons.items() if found["matched_heads"] is not None]
    matches = [np.array(comparisons[name]["matched_heads"]) for name in alike]
    networks = [subjects[0].network, *(rivals[name][0].network for name in alike)]
    return {
        "networks": len(networks),
        "constants": standard_model.law_table(networks, subjects, matches),
        "node_features": standard_model.node_features(subjects),
    }


def _store_graphs(
    result: dict[str, Any],
    subjects: Sequence[ExplainedBatch],
    records: Sequence[AttentionRecord],
    gradients: Sequence[torch.Tensor],
) -> None:
    """Put the strongest edges of the first structures into ``result``."""
    parts = [
        gradient[subject.graph == n].numpy()
        for subject, gradient in zip(subjects, gradients, strict=True)
        for n in range(subject.count)
    ]
    for entry, record, gradient in list(zip(result["structures"], records, parts, strict=True))[
        :SHOWN
    ]:
        chosen = strongest(record)
        kept = record.part(chosen)
        entry["graph"] = {
            "edge_index": [kept.source.tolist(), kept.target.tolist()],
            "shift": None if kept.image is None else kept.image.tolist(),
            "length_A": np.round(kept.length, 4).tolist(),
            "attention": np.round(kept.weight, 5).tolist(),
            "value_weighted": None if kept.size is None else np.round(kept.size, 5).tolist(),
            "logit_gradient": np.round(gradient[chosen], 6).tolist(),
            "edges_in_all": len(record.length),
        }
