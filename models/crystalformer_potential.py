r"""An interatomic potential: directional sums over all neighbours in a smooth range, and attention.

Every block forms, for channels c and spherical harmonics :math:`C_{lm}` (l = 0..3),

.. math::
    A_{i,c,lm} = \sum_j f(d_{ij}) (R_c \cdot b(d_{ij})) (1 + u_c(x_j)) C_{lm}(\hat r_{ij}), \qquad
    p_{i,l,k} = \sum_m (U_l A)_{k,lm} (V_l A)_{k,lm}

and adds a function of the invariants p to the features of atom i: the recursively embedded density
of Zhang, Xia and Jiang (Phys. Rev. Lett. 127, 156002, 2021; arXiv 2102.11537). f vanishes at the
cutoff :math:`r_c` with all its derivatives, and attention sees distances that grow to infinity
there:

.. math::
    g(d) = \frac{(d / r_c)^6}{1 - (d / r_c)^6}, \qquad f(d) = e^{-g(d)}, \qquad
    d' = \sqrt{d^2 + s^2 g(d)}

The energy is a sum over atoms. That of a lone atom is its element's constant. Where energies of
lone atoms are known, an atom with n = sum_j f(d_ij) neighbours has a mean binding energy, times
1 - exp(-n), beside what the network says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matattn.kernels.directional_sums import directional_sums
from matattn.kernels.periodic_attention import periodic_attention
from matattn.kernels.periodic_attention.reference import safe_distance
from matattn.structures import harmonics
from matattn.structures.batch import Structures, edge_vector
from matattn.structures.image_rule import ImageRule

STRETCH = 2.0  # Å, s
NEAREST = 1e-3  # of 1 - (d / r_c)^6, where all has vanished long before
ATTENTION_SIGMA = 1.5  # Å, in the beginning
ELEMENTS = 119


def decay(distance: Tensor, cutoff: float) -> Tensor:
    """Return g of distances, which grows from 0 to infinity at the cutoff, smoothly."""
    part = (distance / cutoff) ** 6
    return part / (1 - part).clamp(min=NEAREST)


@dataclass(frozen=True)
class Surroundings:
    """The neighbours of the atoms of a batch, without the atoms themselves, for all blocks."""

    basis: Float[Tensor, "edges radial"]
    directions: Float[Tensor, "edges functions"]  # l = 0 first
    coordination: Float[Tensor, " atoms"]  # sum of f
    source: Int[Tensor, " edges"]
    row_ptr: Int[Tensor, " atoms_plus_one"]
    attended: tuple[Tensor, Tensor, Tensor] | None  # distance, source and row_ptr with the atoms


class DirectionalSums(nn.Module):
    """A and its invariants p (see the module), and what they add to the features.

    ``fit`` measures the sizes of A for every l, and mean and deviation of the invariants, over some
    training structures; they are saved with the weights. In a crystal invariants hardly differ from
    their mean, and only what is left of them tells one atom from another.
    """

    LEAST = 0.05  # of the size of an invariant: what its deviation is at least
    scale: Tensor
    mean: Tensor
    deviation: Tensor
    degrees: Tensor

    def __init__(self, dim: int, channels: int, degree: int, num_radial: int, hidden: int) -> None:
        super().__init__()
        self.radial = nn.Linear(num_radial, channels, bias=False)
        self.u_proj = nn.Linear(dim, channels)
        self.left = nn.Parameter(torch.empty(degree + 1, channels, channels))
        self.right = nn.Parameter(torch.empty(degree + 1, channels, channels))
        invariants = channels * (degree + 2)
        self.output = nn.Sequential(
            nn.Linear(invariants, hidden), nn.SiLU(), nn.Linear(hidden, dim)
        )
        degrees = [order for order in range(degree + 1) for _ in range(2 * order + 1)]
        self.register_buffer("degrees", torch.tensor(degrees), persistent=False)
        self.register_buffer("scale", torch.ones(degree + 1))
        self.register_buffer("mean", torch.zeros(invariants))
        self.register_buffer("deviation", torch.ones(invariants))
        for weight in (self.left, self.right):
            nn.init.normal_(weight, std=channels**-0.5)
        nn.init.normal_(self.radial.weight)

    def forward(self, x: Float[Tensor, "atoms dim"], near: Surroundings) -> Tensor:
        """Return what the sums add to the features [atoms, dim]."""
        return self.output((self.invariants(x, near) - self.mean) / self.deviation)

    def invariants(self, x: Tensor, near: Surroundings) -> Float[Tensor, "atoms invariants"]:
        """Return A for l = 0, and the products for every l."""
        sums = self._sums(x, near).permute(2, 0, 1) / self.scale[self.degrees][:, None, None]
        both = torch.cat([self.left, self.right], 1)
        products = []
        for order, weight in enumerate(both):
            left, right = (sums[order**2 : (order + 1) ** 2] @ weight.T).chunk(2, dim=2)
            products.append((left * right).sum(0))
        by_degree = torch.stack(products, 2).flatten(1)
        # Products of sums grow with the number of neighbours and the depth; their roots do not.
        size = sums.square().mean((0, 2))[:, None]
        return torch.cat([sums[0], by_degree / (1 + size).sqrt()], 1)

    def fit(self, x: Tensor, near: Surroundings) -> None:
        """Measure sizes, means and deviations over the atoms of a batch."""
        squares = self._sums(x, near).square().mean((0, 1))
        totals = squares.new_zeros(len(self.scale)).index_add(0, self.degrees, squares)
        sizes = (totals / torch.bincount(self.degrees)).sqrt()
        self.scale.copy_(torch.where(sizes > 1e-2 * sizes[0], sizes, sizes[0]).clamp(min=1e-6))
        found = self.invariants(x, near)
        self.mean.copy_(found.mean(0))
        least = (self.LEAST * found.square().mean(0).sqrt()).clamp(min=1e-6)
        self.deviation.copy_(torch.maximum(found.std(0), least))

    def _sums(self, x: Tensor, near: Surroundings) -> Float[Tensor, "atoms channels functions"]:
        """Return A."""
        return directional_sums(
            self.radial(near.basis), 1 + self.u_proj(x), near.directions, near.source, near.row_ptr
        )


class SmoothAttention(nn.Module):
    """Crystalformer's attention over stretched distances d', smooth at the cutoff."""

    def __init__(self, dim: int, num_heads: int, num_radial: int, spacing: float) -> None:
        super().__init__()
        self.num_heads, self.spacing = num_heads, spacing
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.radial_weight = nn.Parameter(torch.empty(num_heads, dim // num_heads, num_radial))
        self.log_sigma = nn.Parameter(torch.full((num_heads,), math.log(ATTENTION_SIGMA)))
        nn.init.xavier_uniform_(self.radial_weight.flatten(0, 1), gain=num_radial**-0.5)

    def forward(self, x: Float[Tensor, "atoms dim"], near: Surroundings) -> Tensor:
        """Return what attention adds to the features [atoms, dim]."""
        assert near.attended is not None
        q, k, v = self.qkv(x).view(len(x), 3, self.num_heads, -1).unbind(1)
        a = (-0.5 * torch.exp(-2 * self.log_sigma)).expand(len(x), -1)
        y = periodic_attention(
            q, k, v, a, self.radial_weight, *near.attended,
            spacing=self.spacing, width=self.spacing,
        )  # fmt: skip
        return self.output(cast(Tensor, y).flatten(1))  # (y, lse) only with return_lse


class PotentialBlock(nn.Module):
    """A residual block: attention, directional sums, MLP."""

    def __init__(
        self, attention: SmoothAttention | None, sums: DirectionalSums, dim: int, hidden: int
    ) -> None:
        super().__init__()
        self.attention, self.sums = attention, sums
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))

    def forward(
        self, x: Float[Tensor, "atoms dim"], near: Surroundings, fit: bool = False
    ) -> Tensor:
        """Return the features after the block; ``fit`` measures its sums first."""
        if self.attention is not None:
            x = x + self.attention(x, near)
        if fit:
            self.sums.fit(x, near)
        x = x + self.sums(x, near)
        return x + self.mlp(x)


class CrystalformerPotential(nn.Module):
    """A network for the energy of any number of atoms, smooth in their positions.

    Args:
        dim, num_blocks, hidden: sizes.
        channels: C of the directional sums.
        degree: largest l, 1 to 3.
        cutoff: range, Å. At its end all contributions have vanished with all derivatives.
        num_radial: K Gaussians of the distance, up to the cutoff.
        num_heads: of the attention; 0 leaves it out.

    Shapes: batch of B structures -> energies [B], eV. A lone atom has its element's constant.

    ``constants`` and ``binding`` (eV, by atomic number) and ``scale`` (eV) are fitted to the
    training data.
    """

    kind = "potentials"
    citations = ("crystalformer", "reann")
    operators = ("directional_sums", "periodic_attention")
    constants: Tensor
    binding: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int = 64,
        num_blocks: int = 2,
        hidden: int = 128,
        channels: int = 32,
        degree: int = 3,
        cutoff: float = 6.0,
        num_radial: int = 20,
        num_heads: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= degree <= harmonics.MOST:
            raise ValueError(f"degree={degree}: expected 1 to {harmonics.MOST}")
        if not cutoff > 0:
            raise ValueError(f"cutoff={cutoff} Å: expected more than 0")
        if min(dim, num_blocks, hidden, channels, num_radial) < 1:
            raise ValueError("all sizes of the network must be at least 1")
        if num_heads and dim % num_heads:
            raise ValueError(f"dim={dim} cannot be shared by num_heads={num_heads}")
        self.degree, self.cutoff, self.spacing = degree, cutoff, cutoff / num_radial
        self.num_radial, self.attends = num_radial, num_heads > 0
        self.embedding = nn.Embedding(ELEMENTS, dim)
        self.blocks = nn.ModuleList(
            PotentialBlock(
                SmoothAttention(dim, num_heads, num_radial, self.spacing) if num_heads else None,
                DirectionalSums(dim, channels, degree, num_radial, hidden),
                dim,
                hidden,
            )
            for _ in range(num_blocks)
        )
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.register_buffer("constants", torch.zeros(ELEMENTS, dtype=torch.float64))
        self.register_buffer("binding", torch.zeros(ELEMENTS, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(()))
        nn.init.normal_(self.embedding.weight, std=0.1)

    def image_rule(self) -> ImageRule:
        """Return the rule of the neighbours: all within the cutoff, by their positions."""
        return ImageRule(self.cutoff)

    def surroundings(self, batch: Structures, lone: int) -> Surroundings:
        """Return the neighbours in a batch and of ``lone`` more atoms, differentiable by pos, cell.

        The further atoms, which have none, stand behind those of the batch.
        """
        source, target = batch.edge_index
        vectors = edge_vector(batch)
        distance = safe_distance(vectors)
        atoms, device = len(batch.z) + lone, batch.pos.device
        attended = None
        if self.attends:
            itself = torch.arange(len(batch.z), atoms, device=device)
            with_itself = torch.searchsorted(
                torch.cat([target, itself]), torch.arange(atoms + 1, device=device)
            )
            squared = distance.square() + STRETCH**2 * decay(distance, self.cutoff)
            zero = squared == 0  # an atom seen from itself
            far = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
            attended = (
                torch.cat([far, far.new_zeros(lone)]),
                torch.cat([source, itself]),
                with_itself,
            )
        others = distance > 0
        vectors, distance = vectors[others], distance[others]
        source, target = source[others], target[others]
        row_ptr = torch.searchsorted(target, torch.arange(atoms + 1, device=device))
        numbers = torch.arange(1, self.num_radial + 1, device=device)
        exponent = 0.5 * (distance[:, None] / self.spacing - numbers).square()
        envelope = torch.exp(-decay(distance, self.cutoff))
        basis = torch.exp(-exponent) * envelope[:, None]
        coordination = envelope.new_zeros(atoms).index_add(0, target, envelope)
        directions = harmonics.of_edges(vectors, distance, self.degree)
        directions = torch.cat([torch.ones_like(directions[:, :1]), directions], 1)
        return Surroundings(basis, directions, coordination, source, row_ptr, attended)

    def atoms(
        self, batch: Structures
    ) -> tuple[Float[Tensor, "atoms dim"], Float[Tensor, " atoms"]]:
        """Return features of the surroundings and the energy (eV, float64) of every atom."""
        elements, element = batch.z.unique(return_inverse=True)
        near = self.surroundings(batch, len(elements))
        x = self.embedding(torch.cat([batch.z, elements]))
        for block in self.blocks:
            x = block(x, near)
        energies, alone = self.head(x)[:, 0].split([len(batch.z), len(elements)])
        of_network = self.scale * (energies - alone[element])
        bound = 1 - torch.exp(-near.coordination[: len(batch.z)])
        # A sum of thousands needs the digits.
        of_elements = self.constants[batch.z].double() + self.binding[batch.z] * bound
        return x[: len(batch.z)], of_elements + of_network

    def atom_features(self, batch: Structures) -> Float[Tensor, "atoms dim"]:
        """Return what the last block says of the surroundings of every atom."""
        return self.atoms(batch)[0]

    def atom_energies(self, batch: Structures) -> Float[Tensor, " atoms"]:
        """Return the energy of every atom, eV, in float64; that of a structure is their sum."""
        return self.atoms(batch)[1]

    @torch.no_grad()
    def fit_sums(self, batch: Structures) -> None:
        """Measure the sizes of all directional sums over training structures."""
        near = self.surroundings(batch, 0)
        x = self.embedding(batch.z)
        for block in self.blocks:
            x = block(x, near, fit=True)

    def forward(self, batch: Structures) -> Float[Tensor, " structures"]:
        """Return the energy of every structure, eV, in float64."""
        return of_structures(self.atom_energies(batch), batch)


def of_structures(energies: Float[Tensor, " atoms"], batch: Structures) -> Tensor:
    """Return the sums of the energies of atoms over every structure."""
    return energies.new_zeros(batch.num_graphs).index_add(0, batch.batch, energies)
