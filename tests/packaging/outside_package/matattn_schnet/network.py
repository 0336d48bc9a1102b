"""SchNet: continuous filters of the distance, for crystals and molecules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from matattn.structures.batch import Structures, edge_length
from matattn.structures.image_rule import ImageRule
from matattn.structures.neighbors import SELF
from matattn.structures.network import StructureNetwork

ELEMENTS = 98


class SchNet(StructureNetwork):
    r"""Properties of structures by continuous-filter convolutions.

    .. math::
        x_i' = x_i + f\Big(\sum_j x_j \circ W(|r_i - r_j|)\Big)

    over neighbours j within ``cutoff`` Å. W is a network of Gaussians of the distance that goes
    smoothly to zero at the cutoff. Features of a structure are the mean of its atoms'.

    Args:
        num_targets: T.
        dim: of the features of an atom.
        num_blocks: of convolutions.
        num_radial: Gaussians.
        cutoff: Å.
    """

    citations = (
        "@inproceedings{schnet,\n  title = {{SchNet}: A continuous-filter convolutional neural "
        'network for modeling quantum interactions},\n  author = {Sch{\\"u}tt, Kristof T. and '
        "others},\n  booktitle = {Advances in Neural Information Processing Systems},\n"
        "  year = {2017},\n}",
    )
    reads_molecules = True

    offsets: Tensor

    def __init__(
        self,
        num_targets: int,
        dim: int = 32,
        num_blocks: int = 2,
        num_radial: int = 16,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__()
        if dim < 1 or num_blocks < 1 or num_radial < 2 or not cutoff > 0:
            raise ValueError("expected dim and num_blocks from 1, num_radial from 2, cutoff > 0")
        self.cutoff = cutoff
        self.register_buffer("offsets", torch.linspace(0, cutoff, num_radial))
        self.embedding = nn.Embedding(ELEMENTS + 1, dim)
        self.filters = nn.ModuleList(_mlp(num_radial, dim) for _ in range(num_blocks))
        self.updates = nn.ModuleList(_mlp(dim, dim) for _ in range(num_blocks))
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.SiLU())
        self.output = nn.Linear(dim, num_targets)

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """Return all images within the cutoff; equivalent atoms may stand as one row."""
        return ImageRule(self.cutoff, symmetry=symmetry)

    def features(self, batch: Structures) -> Tensor:
        """Return the mean features of the atoms of every structure [B, dim]."""
        distance = edge_length(batch)
        source, target = batch.edge_index
        width = self.offsets[1] - self.offsets[0]
        radial = torch.exp(-0.5 * ((distance[:, None] - self.offsets) / width).square())
        weight = 0.5 * (1 + torch.cos(math.pi * distance / self.cutoff)) * (distance > SELF)
        if (multiplicity := getattr(batch, "multiplicity", None)) is not None:
            weight = weight * multiplicity
        x = self.embedding(batch.z)
        for make_filter, update in zip(self.filters, self.updates, strict=True):
            messages = x[source] * make_filter(radial) * weight[:, None]
            x = x + update(torch.zeros_like(x).index_add(0, target, messages))
        atoms = getattr(batch, "orbit_size", None)
        atoms = torch.ones_like(x[:, 0]) if atoms is None else atoms
        total = x.new_zeros(batch.num_graphs, x.shape[1]).index_add(
            0, batch.batch, x * atoms[:, None]
        )
        return total / x.new_zeros(batch.num_graphs, 1).index_add(0, batch.batch, atoms[:, None])

    def readout(self, features: Tensor) -> Tensor:
        """Return the targets [B, T] of features [B, dim]."""
        return self.output(self.hidden(features))

    def output_layer(self) -> nn.Linear:
        """Return the last layer."""
        return self.output


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))
