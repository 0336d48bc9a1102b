"""What is explained: samples of any family, with the network that predicts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from matattn.attention import Attends, AttentionLayer, LayerProbe
from matattn.errors import ExplanationError

Batch = TypeVar("Batch")


class Seen(NamedTuple):
    """The attention of one layer in an ordinary pass, over E edges and H heads."""

    seen: Tensor  # [E, H] weights
    seen_size: Tensor  # [E, H], |weight x value x projection|


class HasHeads(Protocol):
    """B structures, meshes or configurations, and the network whose heads are examined."""

    @property
    def layers(self) -> list[AttentionLayer]:
        """Return the layers of attention, L of them with H heads."""
        ...

    @property
    def count(self) -> int:
        """Return B."""
        ...

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Return predictions [R] with attention as probes make it."""
        ...

    def gates(self, gate: Tensor) -> list[LayerProbe]:
        """Return probes with gates [L, H] of the heads, or [B, L, H]."""
        ...

    def slopes(self, gate: Tensor) -> Tensor:
        """Return |df / dxi| [B, L, H] at gates [L, H]."""
        ...

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return how far two predictions are apart [B]."""
        ...

    def error(self, values: Tensor) -> Tensor:
        """Return the error of predictions [B]; NaN without labels."""
        ...


class HasSources(Protocol):
    """B structures with E edges (or meshes with E points), which attention goes to."""

    @property
    def network(self) -> nn.Module:
        """Return the network that is explained."""
        ...

    @property
    def graph(self) -> Tensor:
        """Return the structure [E] of every edge."""
        ...

    @property
    def length(self) -> Tensor:
        """Return the distance [E] of every source from what attends to it."""
        ...

    @property
    def removable(self) -> Tensor:
        """Return whether an edge [E] may be removed."""
        ...

    @property
    def count(self) -> int:
        """Return B."""
        ...

    def probes(self, **everywhere: Any) -> list[LayerProbe]:
        """Return one probe for each layer, all with the same content."""
        ...

    def observe(self) -> list[Seen]:
        """Return the attention of every layer in an ordinary pass."""
        ...

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Return predictions [R] with attention as probes make it."""
        ...

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return how far two predictions are apart [B]."""
        ...


def check_attends(network: Attends) -> None:
    """Raise ExplanationError for a network without attention."""
    if not network.attention_layers():
        raise ExplanationError(f"{type(network).__name__} has no attention that could be explained")


def column_of(target: str | None, names: Sequence[str]) -> int:
    """Return the column of a target, by default the first; raise ExplanationError if unknown."""
    if target is not None and target not in names:
        raise ExplanationError(f"target {target}: the model predicts {', '.join(names)} only")
    return 0 if target is None else names.index(target)


def seen_by(probes: Sequence[LayerProbe]) -> list[Seen]:
    """Return what probes with a ``projection`` saw in the pass that went through them."""
    seen = []
    for probe in probes:
        assert probe.seen is not None and probe.seen_size is not None
        seen.append(Seen(probe.seen, probe.seen_size))
    return seen


def stacked(seen: Sequence[Seen]) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and value-weighted attention of all layers, both [L, H, E]."""
    return (
        torch.stack([layer.seen.T for layer in seen]).numpy(),
        torch.stack([layer.seen_size.T for layer in seen]).numpy(),
    )


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, from the input on."""
    return list(network.get_submodule("blocks").children())


def over(batches: Sequence[Batch], run: Callable[[Batch], Tensor]) -> np.ndarray:
    """Return what ``run`` gives for every batch, in one array [all structures, ...]."""
    return torch.cat([run(batch).detach() for batch in batches]).double().numpy()


def means(total: np.ndarray, count: np.ndarray) -> list[Any]:
    """Return total / count [..., bins] as nested lists, with None in empty bins for JSON."""
    mean = (total / np.maximum(count, 1)).astype(object)
    mean[..., count == 0] = None
    return mean.tolist()
