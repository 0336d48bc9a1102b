"""Probes that record and change attention, as every network offers that can be explained.

A network with ``attention_layers`` calls the ``LayerProbe`` of each of its layers, when one is set,
in every forward pass. Without one it runs its fused kernels as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor, nn


class AttentionLayer(NamedTuple):
    """A module with a ``probe`` attribute, and the output matrix [H, D, C] of its heads."""

    module: nn.Module
    projection: Tensor

    @classmethod
    def of(cls, module: nn.Module, weight: Tensor, heads: int) -> AttentionLayer:
        """Return the layer whose heads all end in one linear layer of weight [C, H D]."""
        return cls(module, weight.T.unflatten(0, (heads, -1)))


class Attends(Protocol):
    """A network that lists its attention layers, which may be none."""

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the attention layers, from the input on."""


@dataclass
class LayerProbe:
    """Changes to one layer's attention in a forward pass, and the record of it.

    E counts the edges of a graph; for networks on meshes, the points that every latent (or every
    other point) attends to.
    """

    edge_bias: Tensor | None = None  # [E], added to all logits; -inf removes, weights sum to 1
    edge_scale: Tensor | None = None  # [E], factor of all weights; 0 removes, the others stay
    weights: Tensor | None = None  # [E, H], instead of the network's own
    head_gate: Tensor | None = None  # [H] or [N, H], factor of every head's output
    projection: Tensor | None = None  # of the layer; needed for ``seen_size``
    rows: Tensor | None = None  # [meshes], the point of each whose attention to all is recorded
    seen: Tensor | None = None  # [E, H], the recorded weights
    seen_size: Tensor | None = None  # [E, H], |weight x value x projection|

    def biased(self, bias: Tensor | None) -> Tensor | None:
        """Return the constants of the logits, plus those of the probe."""
        if self.edge_bias is None:
            return bias
        if bias is None:
            return self.edge_bias
        return bias + (self.edge_bias[:, None] if bias.dim() == 2 else self.edge_bias)

    def weigh(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return the weights [E, H] to use, and record them; values [E, H, D] of the edges."""
        if self.weights is not None:
            weights = self.weights.to(weights.dtype)
        if self.edge_scale is not None and self.rows is None:  # on meshes, ``shares`` did it
            weights = weights * self.edge_scale[:, None]
        self.seen = weights
        if self.projection is not None:
            sent = torch.einsum("ehd,hdc->ehc", values, self.projection[: weights.shape[1]])
            self.seen_size = weights * sent.norm(dim=-1)
        return weights

    def shares(self, scores: Tensor, here: slice) -> Tensor:
        """Return the softmax of scores [H, Q, points] of the mesh with the points ``here``.

        Raises ValueError when ``weights`` are set: a mesh has too many of them.
        """
        if self.weights is not None:
            raise ValueError(
                "networks on meshes have no weights of edges that could be replaced; set "
                "edge_bias or edge_scale instead"
            )
        if self.edge_bias is not None:
            scores = scores + self.edge_bias[here]
        weights = scores.softmax(-1)
        return weights if self.edge_scale is None else weights * self.edge_scale[here]

    def mix(
        self, values: Tensor, ptr: Tensor, factors: Callable[[int, slice], list[Tensor]]
    ) -> Tensor:
        """Return the gated outputs [N, H, D] of attention within meshes; values [N, H, D].

        ``factors(mesh, points)`` returns matrices [H, ., .] whose product is the attention of all
        points to all points. The row that ``rows`` names in each mesh is recorded.
        """
        out = torch.empty_like(values)
        seen = None if self.rows is None else values.new_empty(values.shape[:2])
        for mesh, (begin, end) in enumerate(pairwise(ptr.tolist())):
            points = slice(begin, end)
            matrices = factors(mesh, points)
            mixed = values[points].transpose(0, 1)
            for matrix in reversed(matrices):
                mixed = matrix @ mixed
            out[points] = mixed.transpose(0, 1)
            if seen is not None and self.rows is not None:
                row = matrices[0][:, int(self.rows[mesh]) - begin, None]
                for matrix in matrices[1:]:
                    row = row @ matrix
                seen[points] = row[:, 0].T
        if seen is not None:
            self.weigh(seen, values)
        return self.gate(out)

    def gate(self, out: Tensor) -> Tensor:
        """Return the outputs [N, H, D] of the heads, each times its gate."""
        return out if self.head_gate is None else out * self.head_gate.unsqueeze(-1)


@contextmanager
def probed(network: Attends, probes: Sequence[LayerProbe]) -> Iterator[None]:
    """Send every forward pass of ``network`` in this block through ``probes``, one a layer."""
    modules: list[Any] = [layer.module for layer in network.attention_layers()]
    try:
        for module, probe in zip(modules, probes, strict=True):
            module.probe = probe
        yield
    finally:
        for module in modules:
            module.probe = None


@dataclass(frozen=True)
class AttentionRecord:
    """Attention in one structure, mesh or lattice: who attends to whom, and how much.

    One schema for all families. E pairs, L layers, H heads: atoms and their neighbours' images,
    points of a mesh, patches of a lattice.
    """

    target: np.ndarray  # [E] what attends
    source: np.ndarray  # [E] what is attended to
    length: np.ndarray  # [E] how far apart they are, in ``unit``
    weight: np.ndarray  # [L, H, E]; sums to 1 over the sources of every target, where it is softmax
    unit: str
    size: np.ndarray | None = None  # [L, H, E] value-weighted: |weight x value x projection|
    image: np.ndarray | None = None  # [E, 3] cell of the source, in lattice vectors

    def part(self, chosen: np.ndarray) -> AttentionRecord:
        """Return the pairs in ``chosen``: indices, or a truth value for each pair."""
        size, image = self.size, self.image
        return replace(
            self,
            target=self.target[chosen],
            source=self.source[chosen],
            length=self.length[chosen],
            weight=self.weight[..., chosen],
            size=None if size is None else size[..., chosen],
            image=None if image is None else image[chosen],
        )

    def entropy(self) -> np.ndarray:
        """Return the mean of -sum a ln a over the targets, in nats [L, H].

        Zero means that each target attends to one source.
        """
        return -xlogy(self.weight, self.weight).sum(-1) / len(np.unique(self.target))

    def effective_range(self) -> np.ndarray:
        """Return the mean attended length, sum a r / sum a, [L, H]."""
        return (self.weight * self.length).sum(-1) / self.weight.sum(-1)

    def by_length(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the summed weights [L, H, bins] and the number [bins] of pairs by length."""
        bins = len(edges) - 1
        index = np.digitize(self.length, edges) - 1
        inside = (index >= 0) & (index < bins)
        one_hot = np.eye(bins)[index[inside]]  # [E, bins]
        return self.weight[..., inside] @ one_hot, one_hot.sum(0)
