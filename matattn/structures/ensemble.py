"""Several networks of one kind as one: their mean is more accurate, their spread tells how sure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matattn.structures.image_rule import ImageRule
from matattn.structures.network import StructureNetwork


class Ensemble(StructureNetwork):
    """The mean of ``members``, networks of one class and size: batch -> [B, T].

    Lakshminarayanan, Pritzel, Blundell: "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles", NeurIPS 2017, arXiv 1612.01474.
    """

    def __init__(self, members: Sequence[StructureNetwork]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def __iter__(self) -> Iterator[StructureNetwork]:
        return iter(self.members)  # type: ignore[arg-type]  # a ModuleList forgets its types

    @property
    def first(self) -> StructureNetwork:
        """Return the first member."""
        return next(iter(self))

    @property
    def level(self) -> str:
        """Return what has a value, which is the same for all members."""
        return self.first.level

    def features(self, batch: Any) -> Tensor:
        """Return the members' features beside each other [B, M F]."""
        return torch.cat([member.features(batch) for member in self], dim=1)

    def member_outputs(self, features: Tensor) -> Tensor:
        """Return the outputs of every member [M, B, T] from ``features``."""
        parts = features.chunk(len(self.members), dim=1)
        pairs = zip(self, parts, strict=True)
        return torch.stack([member.readout(part) for member, part in pairs])

    def readout(self, features: Tensor) -> Tensor:
        """Return the mean of the members' outputs [B, T]."""
        return self.member_outputs(features).mean(0)

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """Return the rule of the neighbour list that all members need."""
        return self.first.image_rule(tolerance, symmetry)

    def check(self, z: Tensor, pos: Tensor, cell: Tensor, where: str = "structure") -> None:
        """Raise StructureError for what the members cannot read."""
        self.first.check(z, pos, cell, where)


def first_member(network: StructureNetwork) -> StructureNetwork:
    """Return the first member of an ensemble, or the network itself."""
    return network.first if isinstance(network, Ensemble) else network
