"""Explain fields on meshes: what the routing of FLARE, or full attention, rests on.

Heads are measured by the whole field. For removal, one point of each mesh is explained, the one
with the largest predicted value: other points are taken away as sources, which no latent looks at
any more, in the order of the explained point's attention. All numbers are in the unit of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from matattn.attention import AttentionLayer, AttentionRecord, LayerProbe, probed
from matattn.meshes.batch import InputScaling, MeshBatch, collate_meshes
from matattn.meshes.fields import MeshSample
from matattn.meshes.network import MeshNetwork
from matattn.runtime import plain_torch
from matattn.workflows.explain import checks, faithfulness, heads
from matattn.workflows.explain.report import Section
from matattn.workflows.explain.sections import (
    agreement_section,
    faithfulness_section,
    heads_section,
    ranges_table,
    shuffled_section,
)
from matattn.workflows.explain.subjects import (
    Seen,
    check_attends,
    column_of,
    means,
    seen_by,
    stacked,
)
from matattn.workflows.meshes.predict import FieldPredictor

PROBES = 4  # random directions of the field that gates are differentiated along
BINS = 24


@dataclass(frozen=True)
class ExplainedMeshes:
    """B meshes with N points in all; with ``points``, only the value at one point of each counts.

    The N points stand where structures have edges: they are what attention goes to.
    """

    network: MeshNetwork
    batch: MeshBatch
    graph: Tensor  # [N] mesh of every point
    explained: Tensor  # [B] the explained point of every mesh
    length: Tensor  # [N] distance from it, in the unit of the coordinates
    scale: float
    offset: float
    column: int
    points: bool
    labelled: bool

    @property
    def layers(self) -> list[AttentionLayer]:
        """Return the layers of attention, from the input on."""
        return self.network.attention_layers()

    @property
    def count(self) -> int:
        """Return B."""
        return len(self.batch)

    @property
    def removable(self) -> Tensor:
        """Return whether a point [N] may go as a source: all but the explained one."""
        kept = torch.zeros(len(self.graph), dtype=torch.bool)
        kept[self.explained] = True
        return ~kept

    def probes(self, **everywhere: Any) -> list[LayerProbe]:
        """Return one probe for each layer, all with the same content."""
        return [LayerProbe(**everywhere) for _ in self.layers]

    def gates(self, gate: Tensor) -> list[LayerProbe]:
        """Return probes with gates [L, H] of the heads, or [B, L, H] of each mesh's own."""
        if gate.dim() == 2:
            return [LayerProbe(head_gate=layer) for layer in gate]
        return [LayerProbe(head_gate=g[self.graph]) for g in gate.unbind(1)]

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Return the field at all points [N], or at the explained ones [B]."""
        with probed(self.network, probes or self.probes()):
            field = self.network(self.batch)[:, self.column] * self.scale + self.offset
        return field[self.explained] if self.points else field

    def observe(self) -> list[Seen]:
        """Return what the explained points attend to in an ordinary pass."""
        probes = [LayerProbe(projection=p.projection, rows=self.explained) for p in self.layers]
        with torch.no_grad():
            self.values(probes)
        return seen_by(probes)

    def slopes(self, gate: Tensor) -> Tensor:
        """Return the root mean square of df / dxi over the points, [B, L, H].

        It is estimated from random directions.
        """
        gates = gate.expand(self.count, -1, -1).clone().requires_grad_()
        field = self.values(self.gates(gates))
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros_like(gates)
        for _ in range(PROBES):
            sign = torch.randint(2, field.shape, generator=generator) * 2 - 1
            (slope,) = torch.autograd.grad((field * sign).sum(), gates, retain_graph=True)
            total = total + slope.square()
        sizes = self.batch.ptr.diff()[:, None, None]
        return (total / PROBES / sizes).sqrt()

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the root mean square difference [B] over the points of every mesh."""
        square = (after - before).detach().square()
        if self.points:
            return square.sqrt()
        zero = square.new_zeros(self.count)
        return (zero.index_add(0, self.graph, square) / self.batch.ptr.diff()).sqrt()

    def error(self, values: Tensor) -> Tensor:
        """Return the root mean square error [B]; NaN where the field is not known."""
        if not self.labelled or self.points:
            return values.new_full((self.count,), torch.nan)
        return self.change(self.batch.y[:, self.column], values)


def prepare(
    predictor: FieldPredictor, samples: Sequence[MeshSample], target: str | None
) -> tuple[ExplainedMeshes, ExplainedMeshes]:
    """Return the meshes with their whole field, and with their explained point.

    Raises ExplanationError for a network without attention or a field that it does not predict.
    """
    network = predictor.network.eval()
    check_attends(network)
    names = [field.name for field in predictor.fields("targets")]
    column = column_of(target, names)
    batch = collate_meshes(samples, InputScaling(**predictor.config["input_scaling"]))
    graph = torch.repeat_interleave(torch.arange(len(batch)), batch.ptr.diff())
    mean, std = (predictor.config["normaliser"][key][column] for key in ("mean", "std"))
    with torch.no_grad():
        field = network(batch)[:, column]
    parts = field.split(batch.ptr.diff().tolist())
    explained = torch.stack([part.argmax() for part in parts]) + batch.ptr[:-1]
    pos = torch.from_numpy(np.concatenate([sample.pos for sample in samples]))
    length = (pos - pos[explained[graph]]).norm(dim=1)
    labelled = all(sample.y.shape[1] == len(names) for sample in samples)
    whole = ExplainedMeshes(
        network, batch, graph, explained, length, std, mean, column, points=False, labelled=labelled
    )
    return whole, replace(whole, points=True)


@plain_torch()
def explain(
    predictor: FieldPredictor,
    samples: Sequence[MeshSample],
    target: str | None = None,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Any]:
    """Return the content of ``explanation.json`` for meshes; raise what ``prepare`` raises."""
    whole, points = prepare(predictor, samples, target)
    field = predictor.fields("targets")[whole.column]
    scores = [faithfulness.edge_scores(points)]
    advance(1)
    record = _record(points, predictor.fields("coordinates")[0].unit)
    edges = np.linspace(0, float(record.length.max()) * 1.001, BINS + 1)
    with torch.no_grad():
        errors = whole.error(whole.values())
    return {
        "network": type(whole.network).__name__,
        "target": field.name,
        "unit": field.unit,
        "seed": seed,
        "removal_rules": faithfulness.RULES,
        "root_mean_square_error": None if errors.isnan().any() else float(errors.mean()),
        "meshes": [
            {"id": sample.id, "points": len(sample.pos), "explained_point": int(at)}
            for sample, at in zip(samples, whole.explained - whole.batch.ptr[:-1], strict=True)
        ],
        "attention": {
            "unit": record.unit,
            "middle": ((edges[:-1] + edges[1:]) / 2).tolist(),
            "mean_weight": means(*record.by_length(edges)),
            "entropy_nats": record.entropy().tolist(),
            "effective_range": record.effective_range().tolist(),
            "mean_length": float(record.length.mean()),
        },
        "heads": heads.heads([whole], advance),
        "faithfulness": faithfulness.faithfulness([points], scores, seed, advance),
        "agreement": faithfulness.agreement([points], scores, seed),
        "shuffled_weights": checks.depends_on_weights(
            [points], faithfulness.edge_scores, scores, seed, advance
        ),
    }


def _record(points: ExplainedMeshes, unit: str) -> AttentionRecord:
    """Return the attention of the explained points to all points of their meshes."""
    weight, size = stacked(points.observe())
    source = torch.arange(len(points.graph)).numpy()
    target = points.explained[points.graph].numpy()
    return AttentionRecord(target, source, points.length.numpy(), weight, unit, size)


def sections(result: dict[str, Any]) -> list[Section]:
    """Return all sections of a report on meshes."""
    unit = result["unit"]
    curves = {
        name: by_rule["renormalised"]["comprehensiveness_aopc"]
        for name, by_rule in result["faithfulness"]["orders"].items()
    }
    error = result["root_mean_square_error"]
    text = (
        f"{result['network']} predicts {result['target']} in {unit}; "
        f"{len(result['meshes'])} meshes"
        + ("." if error is None else f", with a root mean square error of {error:.3g} {unit}.")
        + " In each mesh the point with the largest predicted value is explained.\n\n"
        "That value changes by "
        f"{curves['attention']:.3g} {unit} on average over shares of 1 to 50 % when the points "
        "with the most attention are taken away as sources, by "
        f"{curves['shortest first']:.3g} when the nearest ones are, by {curves['random']:.3g} when "
        "random ones are. Attention is the product of both steps of the routing: point to latents "
        "to points.\n\nAn explanation says what this network does, not what nature does."
    )
    return [
        Section("What to make of it", text),
        _distance(result),
        heads_section(result, "root mean square"),
        faithfulness_section(result, "points"),
        agreement_section(result),
        shuffled_section(result),
    ]


def _distance(result: dict[str, Any]) -> Section:
    """Return the section on attention against distance."""
    attention = result["attention"]
    mean = np.array(attention["mean_weight"], dtype=float)
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for layer, weight in enumerate(mean):
        axes.plot(attention["middle"], weight.mean(0), marker=".", label=f"layer {layer + 1}")
    unit = attention["unit"]
    axes.set(xlabel=f"distance from the explained point / {unit}", yscale="log",
             ylabel="mean weight of a point")  # fmt: skip
    axes.legend(fontsize=7, ncols=2)
    ranges = ranges_table(attention["entropy_nats"], attention["effective_range"], unit)
    text = (
        "Mean over meshes and heads. A weight that does not fall with distance is global: the mean "
        f"distance of all points is {attention['mean_length']:.3g} {unit}."
    )
    return Section(
        "Attention against distance", text, [(figure, "Attention by distance.")], [ranges]
    )
