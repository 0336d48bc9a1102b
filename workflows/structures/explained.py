"""Structures whose predictions are explained, with their network: what every measure starts from.

Values are in physical units. Where a network has a value for every atom or pair, the derivative of
a structure is that of their sum, and a change or error the mean over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
from matattn.workflows.explain.subjects import check_attends
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

    @property
    def layers(self) -> list[AttentionLayer]:
        """Layers of attention, from the input on."""
        return self.network.attention_layers()

    @property
    def count(self) -> int:
        """B."""
        return self.batch.num_graphs

    @property
    def graph(self) -> Tensor:
        """Structure [E] of every edge."""
        return self.batch.batch[self.batch.edge_index[1]]

    @property
    def removable(self) -> Tensor:
        """Whether an edge [E] leads from another atom or image than the target itself."""
        return self.length >= SELF

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Predictions [R] with attention as probes make it, differentiable by what they hold."""
        with probed(self.network, probes or self.probes()):
            return self.network(self.batch)[:, self.column] * self.scale + self.offset

    def probes(self, **everywhere: Any) -> list[LayerProbe]:
        """One probe for each layer, all with the same content."""
        return [LayerProbe(**everywhere) for _ in self.layers]

    def gates(self, gate: Tensor) -> list[LayerProbe]:
        """Probes with gates [L, H] of the heads, or [B, L, H] of each structure's own."""
        if gate.dim() == 2:
            return [LayerProbe(head_gate=layer) for layer in gate]
        return [LayerProbe(head_gate=g[self.batch.batch]) for g in gate.unbind(1)]

    def slopes(self, gate: Tensor) -> Tensor:
        """|df / dxi| [B, L, H] by gates on the heads, at gates [L, H]."""
        gates = gate.expand(self.count, -1, -1).clone().requires_grad_()
        return torch.autograd.grad(self.values(self.gates(gates)).sum(), gates)[0].abs()

    def mean(self, row_values: Tensor) -> Tensor:
        """Mean [B] over the rows of every structure."""
        zero = row_values.new_zeros(self.count)
        return zero.index_add(0, self.owner, row_values) / torch.bincount(self.owner)

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean absolute difference [B] of two predictions."""
        return self.mean((after - before).abs().detach())

    def error(self, values: Tensor) -> Tensor:
        """Mean absolute error [B]; NaN where there is no label."""
        if self.labels is None:
            return values.new_full((self.count,), torch.nan)
        return self.mean((values.detach() - self.labels).abs())

    def observe(self) -> list[LayerProbe]:
        """What is seen in an ordinary pass: weights and value-weighted attention of every layer."""
        probes = [LayerProbe(projection=layer.projection) for layer in self.layers]
        with torch.no_grad():
            self.values(probes)
        return probes

    def records(self) -> list[AttentionRecord]:
        """Attention in every structure."""
        seen = self.observe()
        weight, size = (
            torch.stack([cast(Tensor, getattr(probe, name)).T for probe in seen]).numpy()
            for name in ("seen", "seen_size")
        )
        first = torch.searchsorted(self.batch.batch, torch.arange(self.count))
        records = []
        for graph in range(self.count):
            chosen = self.graph == graph
            source, target = (self.batch.edge_index[:, chosen] - first[graph]).numpy()
            at = chosen.numpy()
            records.append(
                AttentionRecord(
                    target, source, self.length[chosen].detach().numpy(), weight[..., at], "Å",
                    size[..., at], cast(Tensor, self.batch.image)[chosen].numpy(),
                )
            )  # fmt: skip
        return records


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
    """``items`` (keys z, pos, cell and perhaps y and pair_index) in batches that fit into memory.

    ``target`` is the property that is explained, by default the first one. Of an ensemble the first
    network is explained.

    Raises ExplanationError for a network without attention, a property that it does not predict, or
    a structure whose atoms are all out of each other's reach.
    """
    network = explained_network(predictor.network)
    names = [described["name"] for described in predictor.targets]
    if target is not None and target not in names:
        raise ExplanationError(f"the model predicts {', '.join(names)}, not {target}")
    column = 0 if target is None else names.index(target)
    mean, std = (predictor.config["normaliser"][key][column] for key in ("mean", "std"))
    images = network.image_rule(TOLERANCE)
    waiting: list[CrystalGraph] = []
    edges = 0
    for row, item in enumerate(items):
        found = images(*arrays_of(item))
        if (found.distance < SELF).all():
            name = item["id"] if "id" in item else f"structure {row + 1}"
            raise ExplanationError(
                f"{name}: no atom has another one within the network's reach of "
                f"{images.cutoff:.3g} Å: there is no attention to explain"
            )
        if waiting and edges + len(found.source) > EDGES_PER_BATCH:
            yield _batch(network, waiting, column, mean, std)
            waiting, edges = [], 0
        waiting.append(to_graph(item, found))
        edges += len(found.source)
    if waiting:
        yield _batch(network, waiting, column, mean, std)


def _batch(
    network: StructureNetwork, graphs: list[CrystalGraph], column: int, mean: float, std: float
) -> ExplainedBatch:
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
