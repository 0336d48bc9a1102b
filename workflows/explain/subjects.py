"""What is explained: samples of any family, with the network that predicts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from matattn.attention import Attends, AttentionLayer, LayerProbe
from matattn.errors import ExplanationError

Batch = TypeVar("Batch")


class HasHeads(Protocol):
    """B structures, meshes or configurations, and the network whose heads are examined."""

    @property
    def layers(self) -> list[AttentionLayer]: ...
    @property
    def count(self) -> int: ...
    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor: ...
    def gates(self, gate: Tensor) -> list[LayerProbe]: ...
    def slopes(self, gate: Tensor) -> Tensor: ...
    def change(self, before: Tensor, after: Tensor) -> Tensor: ...
    def error(self, values: Tensor) -> Tensor: ...


class HasSources(Protocol):
    """B structures with E edges (or meshes with E points), which attention goes to."""

    @property
    def network(self) -> nn.Module: ...
    @property
    def graph(self) -> Tensor: ...  # [E] structure of each
    @property
    def length(self) -> Tensor: ...  # [E] distance of each from what attends
    @property
    def removable(self) -> Tensor: ...  # [E]
    @property
    def count(self) -> int: ...
    def probes(self, **everywhere: Any) -> list[LayerProbe]: ...
    def observe(self) -> list[LayerProbe]: ...
    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor: ...
    def change(self, before: Tensor, after: Tensor) -> Tensor: ...


def check_attends(network: Attends) -> None:
    """Raise ExplanationError for a network without attention."""
    if not network.attention_layers():
        raise ExplanationError(f"{type(network).__name__} has no attention that could be explained")


def over(batches: Sequence[Batch], run: Callable[[Batch], Tensor]) -> np.ndarray:
    """What ``run`` finds of the structures of every batch, in one array [all structures, ...]."""
    return torch.cat([run(batch).detach() for batch in batches]).double().numpy()
