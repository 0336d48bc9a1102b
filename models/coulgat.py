"""CoulGAT: a graph attention network whose weights follow a screened-Coulomb law of the distance.

Gokden: "CoulGAT: An Experiment on Interpretability of Graph Attention Networks", arXiv 1912.08409.
``matattn.models.coulomb_attention`` holds the attention operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from matattn.attention import AttentionLayer
from matattn.errors import StructureError
from matattn.kernels.precision import accumulator
from matattn.models.coulomb_attention import CoulombGATConv, ScreenedCoulomb
from matattn.models.element_features import NUM_ELEMENTS
from matattn.models.element_features import element_features as element_table
from matattn.models.sizes import check_sizes
from matattn.structures.batch import Structures, edge_length
from matattn.structures.image_rule import ImageRule
from matattn.structures.network import StructureNetwork

READOUTS = ("mean", "sum", "atoms", "pairs")


class Geometry(NamedTuple):
    """The geometry of a batch that attention needs, computed once for all layers."""

    edge_index: Int[Tensor, "2 edges"]  # source, target
    edge_length: Float[Tensor, " edges"]  # Å
    species: Int[Tensor, " atoms"]
    edge_bias: Float[Tensor, " edges"] | None  # logarithm of the multiplicity


class CoulGATBlock(nn.Module):
    """A pre-norm residual block, x + attention(norm(x)), then x + MLP(norm(x)).

    Without ``residual``, the published plain block, ReLU(attention(x)).
    """

    def __init__(self, conv: CoulombGATConv, dim: int, ffn_dim: int, residual: bool) -> None:
        super().__init__()
        self.conv, self.residual = conv, residual
        if residual:
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.out_proj = nn.Linear(dim + conv.heads, dim)
            self.mlp = nn.Sequential(nn.Linear(dim, ffn_dim), nn.SiLU(), nn.Linear(ffn_dim, dim))

    def forward(
        self, x: Float[Tensor, "atoms dim"], geometry: Geometry
    ) -> Float[Tensor, "atoms dim"]:
        """Return the features of the atoms after the block."""
        if not self.residual:
            return F.relu(self.conv(x, *geometry))
        x = x + self.out_proj(self.conv(self.norm1(x), *geometry))
        return x + self.mlp(self.norm2(x))


class CoulGAT(StructureNetwork):
    r"""A network for properties of molecules and crystals, or of their atoms or pairs of atoms.

    Embedding of the elements, ``num_blocks`` of :class:`CoulombGATConv` (with ``residual``, in
    pre-norm residual blocks with an MLP), one hidden layer per atom, and a readout.

    Args:
        num_targets: T, number of predicted properties.
        dim, num_heads, num_blocks, ffn_dim: sizes; every head has dim / num_heads channels.
        elements: atomic numbers of the elements that the network has constants for; None: 1 to 98.
        element_features: "one_hot" (every element and every pair has its own constants) or
            "properties" (constants are bilinear in tabulated properties: for many elements).
        cutoff, switch_width: range of the attention and width of its smooth end, Å.
        query, geom_bias: as of :class:`CoulombGATConv`.
        residual: False stacks the operators plainly, as the published plain network. Without
            ``potential`` it cannot see the distances of atoms that are all equal.
        readout: "mean" (None) or "sum" over the atoms of a structure, for intensive and extensive
            properties; "atoms" or "pairs": a value for every atom, or every pair of
            ``batch.pair_index`` [2, P].

    Each target starts from a sum (or mean) of constants of the elements, ``atom_reference``
    [98, T], which is fitted to the training labels, like SchNet's atomref.

    Shapes: batch of B structures -> [B, T], [N, T] or [P, T], in the units of the normalised
    targets.

    Deviations from the paper: parameters belong to species and not to node slots; the weight of
    distance is in both softmaxes and has a logarithmic form; residual blocks have the potential
    beside the mean; the readout does not depend on the order and number of atoms.
    """

    citations = ("coulgat",)
    reads_molecules = True
    LAW_LR = 5.0  # the law's constants start from physics and have further to go
    atom_reference: Tensor
    species_of: Tensor
    elements: Tensor

    def __init__(
        self,
        num_targets: int = 1,
        dim: int = 64,
        num_heads: int = 4,
        num_blocks: int = 3,
        ffn_dim: int = 128,
        elements: Sequence[int] | None = None,
        element_features: str = "one_hot",
        cutoff: float = 6.0,
        switch_width: float = 1.0,
        query: str = "static",
        geom_bias: bool = True,
        residual: bool = True,
        readout: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim, num_heads, num_blocks=num_blocks, ffn_dim=ffn_dim)
        readout = readout or "mean"
        if readout not in READOUTS:
            raise ValueError(f"readout={readout!r}: choose one of {', '.join(READOUTS)}")
        if not 0 < switch_width < cutoff:
            raise ValueError(
                "switch_width must be between 0 and cutoff, both in Å; got "
                f"{switch_width} and {cutoff}"
            )
        self.cutoff, self.readout_level = cutoff, readout
        numbers = list(range(1, NUM_ELEMENTS + 1)) if elements is None else sorted(set(elements))
        if not numbers or not 1 <= numbers[0] <= numbers[-1] <= NUM_ELEMENTS:
            raise ValueError(f"elements={elements}: expected atomic numbers, 1 to {NUM_ELEMENTS}")
        species_of = torch.full((NUM_ELEMENTS + 1,), -1)
        species_of[numbers] = torch.arange(len(numbers))
        self.register_buffer("species_of", species_of, persistent=False)
        table = element_table(element_features)[torch.tensor(numbers) - 1]
        if element_features == "one_hot":
            table = torch.eye(len(numbers))
        self.register_buffer("elements", table, persistent=False)
        self.register_buffer("atom_reference", torch.zeros(NUM_ELEMENTS, num_targets))
        self.embedding = nn.Linear(table.shape[1], dim, bias=False)
        self.blocks = nn.ModuleList(
            CoulGATBlock(
                CoulombGATConv(
                    dim,
                    dim // num_heads,
                    heads=num_heads,
                    num_species=len(numbers),
                    query=query,
                    geom_bias=geom_bias,
                    cutoff=cutoff,
                    switch_width=switch_width,
                    species_features=None if element_features == "one_hot" else table,
                    add_self_loops=False,
                    potential=residual,
                ),
                dim,
                ffn_dim,
                residual,
            )
            for _ in range(num_blocks)
        )
        self.hidden = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU())
        if readout == "pairs":
            self.of_pairs = nn.Sequential(nn.Linear(2 * dim + NUM_RADIAL, dim), nn.SiLU())
        self.head = nn.Linear(dim, num_targets)

    @property
    def level(self) -> str:
        """Return what has a value of each target, according to ``readout``."""
        return {"atoms": "atom", "pairs": "pair"}.get(self.readout_level, "structure")

    @property
    def element_constants(self) -> Tensor:
        """Return the constants ``atom_reference`` [98, T] of the elements."""
        return self.atom_reference

    def law_parameters(self) -> list[nn.Parameter]:
        """Return the laws' constants, whose learning rate is ``LAW_LR`` times that of the rest."""
        return [p for m in self.modules() if isinstance(m, ScreenedCoulomb) for p in m.parameters()]

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the operators of all blocks, each with its projection of the heads' outputs."""
        layers = []
        for block in (m for m in self.modules() if isinstance(m, CoulGATBlock)):
            conv = block.conv
            width = conv.heads * conv.out_channels
            weight = torch.eye(width, dtype=conv.att.dtype, device=conv.att.device)
            if block.residual:
                weight = block.out_proj.weight[:, :width]
            layers.append(AttentionLayer.of(conv, weight, conv.heads))
        return layers

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """Return the rule of all images within the cutoff, whatever ``tolerance``.

        Atoms that are equivalent by ``symmetry`` may share a row, unless every atom has a value.
        """
        return ImageRule(self.cutoff, symmetry=symmetry if self.level == "structure" else 0.0)

    def check(self, z: Tensor, pos: Tensor, cell: Tensor, where: str = "structure") -> None:
        """Raise StructureError, beginning with ``where``, for elements without constants."""
        self._check_elements(z, where)

    def _check_elements(self, z: Tensor, where: str) -> None:
        if unknown := sorted(set(z[self.species_of[z] < 0].tolist())):
            raise StructureError(
                f"{where}: the network has no constants for atomic numbers {unknown}: use one that "
                "was trained on these elements"
            )

    def geometry(self, batch: Structures) -> Geometry:
        """Return edges, lengths and species of a batch; lengths are differentiable by pos and cell.

        Raises:
            StructureError: the batch has no positions, or the network has no constants for one of
                its elements.
        """
        if batch.pos is None:
            raise StructureError("the graph has no positions: set pos [N, 3], in Å")
        species = self.species_of[batch.z]
        if not torch.compiler.is_compiling():
            self._check_elements(batch.z, "batch")
        multiplicity = getattr(batch, "multiplicity", None)
        bias = None if multiplicity is None else multiplicity.log()
        return Geometry(batch.edge_index, edge_length(batch), species, bias)

    def embed(self, batch: Structures) -> Float[Tensor, "atoms dim"]:
        """Return the embedding of every atom's element."""
        return self.embedding(self.elements[self.species_of[batch.z]])

    def encode(
        self, x: Float[Tensor, "atoms dim"], geometry: Geometry
    ) -> Float[Tensor, "atoms dim"]:
        """Return the features of every atom after the last block."""
        for block in self.blocks:
            x = block(x, geometry)
        return x

    def pool(self, x: Float[Tensor, "atoms dim"], batch: Structures) -> Float[Tensor, "rows dim_t"]:
        """Turn features of atoms into those of ``readout``, a row per value.

        The last T columns are the constants of the elements.
        """
        x, reference = self.hidden(x), self.atom_reference[batch.z - 1]
        x = x.to(accumulator(x.dtype))
        if self.readout_level == "pairs":
            i, j = cast(Any, batch).pair_index
            length = (batch.pos[i] - batch.pos[j]).norm(dim=-1)
            pairs = torch.cat([x[i] + x[j], x[i] * x[j], _radial(length)], 1)
            return torch.cat([self.of_pairs(pairs), reference[i] + reference[j]], 1)
        x = torch.cat([x, reference], 1)
        if self.readout_level == "atoms":
            return x
        size = getattr(batch, "orbit_size", None)
        size = x.new_ones(len(x)) if size is None else size
        total = x.new_zeros(batch.num_graphs, x.shape[1])
        total = total.index_add(0, batch.batch, x * size[:, None])
        if self.readout_level == "sum":
            return total
        atoms = x.new_zeros(batch.num_graphs).index_add(0, batch.batch, size)
        return total / atoms[:, None]

    def features(self, batch: Structures) -> Float[Tensor, "rows dim_t"]:
        """Return the inputs of ``readout`` for every structure, atom or pair."""
        return self.pool(self.encode(self.embed(batch), self.geometry(batch)), batch)

    def readout(self, features: Float[Tensor, "rows dim_t"]) -> Float[Tensor, "rows targets"]:
        """Return the targets of ``features``."""
        dim = self.head.in_features
        return self.head(features[:, :dim]) + features[:, dim:]

    def output_layer(self) -> nn.Linear:
        """Return the last layer, with one row per target."""
        return self.head


class OnNodeFeatures(nn.Module):
    """A CoulGAT with the signature that PyG's explainers call, ``(x, edge_index, batch=...)``.

    ``x`` is ``network.embed(batch)``; the edges keep their lengths while an explainer masks them.
    """

    def __init__(self, network: CoulGAT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, edge_index: Tensor, batch: Structures) -> Tensor:
        """Return the targets, with ``edge_index`` in place of the edges of ``batch``."""
        geometry = self.network.geometry(batch)._replace(edge_index=edge_index)
        network = self.network
        return network.readout(network.pool(network.encode(x, geometry), batch))


NUM_RADIAL, RADIAL_MAX = 32, 8.0  # Gaussians of the length of a pair, Å


def _radial(length: Float[Tensor, " pairs"]) -> Float[Tensor, "pairs radial"]:
    """Expand lengths in Gaussians."""
    centers = torch.linspace(0, RADIAL_MAX, NUM_RADIAL, dtype=length.dtype, device=length.device)
    return (-0.5 * ((length[:, None] - centers) / (centers[1] - centers[0])) ** 2).exp()
