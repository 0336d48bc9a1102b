"""Several networks of one kind as one: their mean is more accurate, their spread tells how sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from matattn.neighbors import HasImageRule, ImageRule


class HasFeatures(Protocol):
    """A network that first describes every sample: forward(batch) = readout(features(batch))."""

    def features(self, batch: Any) -> Tensor:
        """What the network knows of every sample [B, F]."""
        ...

    def readout(self, features: Tensor) -> Tensor:
        """From features [B, F] to outputs [B, T]."""
        ...


def members(network: nn.Module) -> list[nn.Module]:
    """The members of an ensemble, or the network itself."""
    return list(network.members) if isinstance(network, Ensemble) else [network]


class Ensemble(nn.Module):
    """The mean of ``members``, networks of one class and size: batch -> [B, T].

    Lakshminarayanan, Pritzel, Blundell: "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles", NeurIPS 2017, arXiv 1612.01474.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def features(self, batch: Any) -> Tensor:
        """The members' features beside each other [B, M F]."""
        return torch.cat([cast(HasFeatures, m).features(batch) for m in self.members], dim=1)

    def member_outputs(self, features: Tensor) -> Tensor:
        """Outputs of every member [M, B, T] from ``features``."""
        parts = features.chunk(len(self.members), dim=1)
        pairs = zip(self.members, parts, strict=True)
        return torch.stack([cast(HasFeatures, m).readout(part) for m, part in pairs])

    def readout(self, features: Tensor) -> Tensor:
        return self.member_outputs(features).mean(0)

    def forward(self, batch: Any) -> Tensor:
        return self.readout(self.features(batch))

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """The neighbour list that the members need."""
        return cast(HasImageRule, self.members[0]).image_rule(tolerance, symmetry)
