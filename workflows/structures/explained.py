"""Structures whose predictions are explained, with their network: what every measure starts from.

Values are in physical units. Where a network has a value for every atom or pair, the derivative of
a structure is that of their sum, and a change or error the mean over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from matattn.attention import AttentionLayer, AttentionRecord, LayerProbe, probed
from matattn.errors import ExplanationError
from matattn.structures.batch import (
    CrystalBatch,
    CrystalGraph,
    Structures,
    edge_length,
    join,
    to_graph,
)
from matattn.structures.batch import geometry as arrays_of
from matattn.structures.ensemble import first_member
from matattn.structures.neighbors import SELF
from matattn.structures.network import StructureNetwork
from matattn.workflows.explain.subjects import Seen, check_attends, column_of, seen_by, stacked
from matattn.workflows.structures.predict import TOLERANCE, Predictor

EDGES_PER_BATCH = 40_000


@dataclass(frozen=True)
class ExplainedBatch:
    """B structures with E edges in all, and the network that predicts one property of them.

    An edge goes from a source (an atom or one of its periodic images) to the target that attends to
    it; edges of length 0, an atom's attention to itself, are never removed.
    """

    network: StructureNetwork
    batch: CrystalBatch
    length: Tensor  # [E] Å
    owner: Tensor  # [R] structure of each predicted row
    scale: float  # standard deviation of what the network learned
    offset: float
    column: int  # of the property among the network's
    labels: Tensor | None  # [R]
    classifies: bool = False  # whether values are probabilities

    @property
    def layers(self) -> list[AttentionLayer]:
        """Return the layers of attention, from the input on."""
        return self.network.attention_layers()

    @property
    def count(self) -> int:
        """Return B."""
        return self.batch.num_graphs

    @property
    def graph(self) -> Tensor:
        """Return the structure [E] of every edge."""
        return self.batch.batch[self.batch.edge_index[1]]

    @property
    def removable(self) -> Tensor:
        """Return whether an edge [E] leads from another atom or image than the target itself."""
        return self.length >= SELF

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Return predictions [R], differentiable by what the probes hold."""
        with probed(self.network, probes or self.probes()):
            values = self.network(self.batch)[:, self.column] * self.scale + self.offset
        return values.sigmoid() if self.classifies else values

    def probes(self, **everywhere: Any) -> list[LayerProbe]:
        """Return one probe for each layer, all with the same content."""
        return [LayerProbe(**everywhere) for _ in self.layers]

    def gates(self, gate: Tensor) -> list[LayerProbe]:
        """Return probes with gates [L, H] of the heads, or [B, L, H] of each structure's own."""
        if gate.dim() == 2:
            return [LayerProbe(head_gate=layer) for layer in gate]
        return [LayerProbe(head_gate=g[self.batch.batch]) for g in gate.unbind(1)]

    def slopes(self, gate: Tensor) -> Tensor:
        """Return |df / dxi| [B, L, H] by gates on the heads, at gates [L, H]."""
        gates = gate.expand(self.count, -1, -1).clone().requires_grad_()
        return torch.autograd.grad(self.values(self.gates(gates)).sum(), gates)[0].abs()

    def mean(self, row_values: Tensor) -> Tensor:
        """Return the mean [B] over the rows of every structure."""
        zero = row_values.new_zeros(self.count)
        return zero.index_add(0, self.owner, row_values) / torch.bincount(self.owner)

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the mean absolute difference [B] of two predictions."""
        return self.mean((after - before).abs().detach())

    def error(self, values: Tensor) -> Tensor:
        """Return the mean absolute error [B]; NaN where there is no label."""
        if self.labels is None:
            return values.new_full((self.count,), torch.nan)
        return self.mean((values.detach() - self.labels).abs())

    def observe(self) -> list[Seen]:
        """Return weights and value-weighted attention of every layer in an ordinary pass."""
        probes = [LayerProbe(projection=layer.projection) for layer in self.layers]
        with torch.no_grad():
            self.values(probes)
        return seen_by(probes)

    def records(self) -> list[AttentionRecord]:
        """Return the attention in every structure."""
        source, target = self.batch.edge_index.numpy()
        weight, size = stacked(self.observe())
        image = None if self.batch.image is None else self.batch.image.numpy()
        whole = AttentionRecord(
            target, source, self.length.detach().numpy(), weight, "Å", size, image
        )
        first = np.searchsorted(self.batch.batch.numpy(), np.arange(self.count))
        parts = (whole.part((self.graph == graph).numpy()) for graph in range(self.count))
        return [
            replace(part, target=part.target - start, source=part.source - start)
            for part, start in zip(parts, first, strict=True)
        ]


def explained_network(network: StructureNetwork) -> StructureNetwork:
    """Return the network that is explained, of an ensemble the first; ExplanationError if none."""
    first = first_member(network).eval()
    check_attends(first)
    return first


def prepare(
    predictor: Predictor,
    items: Sequence[Any],
    target: str | None = None,
) -> Iterator[ExplainedBatch]:
    """Yield items (keys z, pos, cell, perhaps y and pair_index) in batches that fit into memory.

    ``target`` is the property that is explained, by default the first one. Of an ensemble the first
    network is explained.

    Raises ExplanationError for a network without attention, a property that it does not predict, or
    a structure whose atoms are all out of each other's reach.
    """
    network = explained_network(predictor.network)
    column = column_of(target, [described["name"] for described in predictor.targets])
    mean, std = (predictor.config["normaliser"][key][column] for key in ("mean", "std"))
    images, classifies = network.image_rule(TOLERANCE), predictor.classifies
    waiting: list[CrystalGraph] = []
    edges = 0
    for row, item in enumerate(items):
        neighbors = images(*arrays_of(item))
        if (neighbors.distance < SELF).all():
            name = item["id"] if "id" in item else f"structure {row + 1}"
            raise ExplanationError(
                f"{name}: no atom has another one within the network's reach of "
                f"{images.cutoff:.3g} Å: there is no attention to explain; leave it out"
            )
        if waiting and edges + len(neighbors.source) > EDGES_PER_BATCH:
            yield replace(_batch(network, waiting, column, mean, std), classifies=classifies)
            waiting, edges = [], 0
        waiting.append(to_graph(item, neighbors))
        edges += len(neighbors.source)
    if waiting:
        yield replace(_batch(network, waiting, column, mean, std), classifies=classifies)


def _batch(
    network: StructureNetwork, graphs: list[CrystalGraph], column: int, mean: float, std: float
) -> ExplainedBatch:
    """Return graphs as one batch whose ``column`` is explained."""
    batch = join(graphs)
    owner = {
        "structure": torch.arange(batch.num_graphs),
        "atom": batch.batch,
        "pair": batch.batch if batch.pair_index is None else batch.batch[batch.pair_index[0]],
    }[network.level]
    labels = batch.y[:, column] if batch.y.shape[1] > column else None
    return ExplainedBatch(
        network, batch, edge_length(cast(Structures, batch)).detach(), owner, std, mean, column,
        labels,
    )  # fmt: skip
