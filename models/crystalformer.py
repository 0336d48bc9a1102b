r"""Crystalformer: a Transformer whose atoms attend to all periodic images of all atoms.

Taniai, Igarashi, Suzuki, Chiba, Saito, Ushiku, Ono: "Crystalformer: Infinitely Connected Attention
for Periodic Structure Encoding", ICLR 2024, arXiv 2403.11686.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matattn.attention import AttentionLayer, LayerProbe
from matattn.kernels.periodic_attention import (
    cutoff_for_tolerance,
    periodic_attention,
    periodic_moments,
)
from matattn.kernels.periodic_attention.reciprocal import (
    SUMS,
    EqualCrystals,
    periodic_sums,
    reciprocal_attention,
)
from matattn.kernels.periodic_attention.reference import (
    adaptive_range,
    neighbor_weights,
    radial_basis,
)
from matattn.kernels.precision import accumulator, full_precision
from matattn.models.attention_moments import AttentionMoments
from matattn.models.element_features import element_features as element_table
from matattn.models.sizes import check_sizes
from matattn.structures import harmonics
from matattn.structures.batch import Structures, edge_harmonics, edge_length
from matattn.structures.image_rule import ImageRule
from matattn.structures.network import StructureNetwork
from matattn.training.processes import summed

SUMMATIONS = ("converged", "published_adaptive", "published_r2")
RECIPROCAL = ("none", *SUMS)
MOMENTS = ("none", "scalar", "angular")
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Geometry:
    """The geometry of a batch that attention needs, computed once for all layers."""

    distance: Float[Tensor, " edges"]  # Å
    source: Int[Tensor, " edges"]
    row_ptr: Int[Tensor, " atoms_plus_one"]
    target: Int[Tensor, " edges"]
    image: Int[Tensor, "edges 3"] | None
    log_multiplicity: Float[Tensor, " edges"] | None
    orbit_size: Float[Tensor, " atoms"] | None
    atom_cell: Float[Tensor, "atoms 3 3"]  # Å
    periodic_sums: list[EqualCrystals] | None = None  # of the reciprocal-space heads
    harmonics: Float[Tensor, "edges functions"] | None = None  # of the moments, l = 0 first


class InfinitelyConnectedAttention(nn.Module):
    r"""Multi-head attention over all images, with a Gaussian distance decay of learned width.

    Per head, with :math:`q_i, k_j, v_j \in \mathbb{R}^D` and :math:`w \in \mathbb{R}^D`,

    .. math::
        y_i = \frac{1}{Z_i} \sum_j \sum_{n \in \mathbb{Z}^3}
              \exp(q_i \cdot k_j / \sqrt{D} - d_{ijn}^2 / 2 \sigma_i^2) (v_j + W b(d_{ijn}))

    .. math::
        \sigma_i^{-2} = r_0^{-2} \rho((q_i \cdot w - m) / s), \qquad
        \rho(t) = (1 - b)\, \mathrm{ELU}(a t / (1 - b)) + 1

    so that :math:`\sigma_i < r_0 / \sqrt b` = 1.98 Å. m and s are the mean and the (unbiased)
    standard deviation of :math:`q_i \cdot w` over the atoms and heads of the first training batch.
    They are then frozen and saved with the weights. Before any training they are recomputed for
    every batch and not stored.

    With ``reciprocal``, the second half of the heads works in reciprocal space ("dual space" in the
    paper): their Gaussians have :math:`\bar\sigma_i^2 = \bar r_0^2 \rho`, and their values have no
    W.

    With ``moments``, the invariants of ``AttentionMoments`` of the heads in real space are added.

    Shapes: x [N, dim] -> [N, dim]. Units: Å.
    """

    R0, SLOPE, FLOOR = 1.4, 0.1, 0.5  # r_0 in Å, a and b
    RECIPROCAL_R0 = 2.2  # Å
    sigma_mean: Tensor
    sigma_std: Tensor
    sigma_fitted: Tensor
    probe: LayerProbe | None = None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_radial: int,
        radial_max: float,
        radial_width: float,
        summation: str,
        reciprocal: bool = False,
        moments: str = "none",
        moment_channels: int = 2,
        moment_degree: int = 3,
    ) -> None:
        super().__init__()
        if reciprocal and num_heads % 2:
            raise ValueError(
                f"num_heads={num_heads} is odd: expected an even number, because half of the heads "
                "are reciprocal"
            )
        self.num_heads, self.summation = num_heads, summation
        self.real_heads = num_heads // 2 if reciprocal else num_heads
        self.head_dim = dim // num_heads
        self.spacing = radial_max / max(num_radial, 1)
        self.width = self.spacing * radial_width
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.sigma_weight = nn.Parameter(torch.empty(num_heads, self.head_dim))
        self.radial_weight = nn.Parameter(torch.empty(self.real_heads, self.head_dim, num_radial))
        self.moments = None
        if moments != "none":
            degree = moment_degree if moments == "angular" else 0
            self.moments = AttentionMoments(
                dim, self.real_heads, num_radial, moment_channels, degree
            )
        self.register_buffer("sigma_mean", torch.zeros(()))
        self.register_buffer("sigma_std", torch.ones(()))
        self.register_buffer("sigma_fitted", torch.zeros((), dtype=torch.bool))

    def inverse_square_sigma(
        self, q: Float[Tensor, "atoms heads d"], orbit_size: Float[Tensor, " atoms"] | None = None
    ) -> Float[Tensor, "atoms heads"]:
        r"""Compute :math:`\sigma_i^{-2}` of every atom and head, 1/Å^2, from unscaled queries."""
        with full_precision(q):
            projected = torch.einsum("nhd,hd->nh", q.to(accumulator(q.dtype)), self.sigma_weight)
        mean, std = self.sigma_mean, self.sigma_std
        if not self.sigma_fitted:
            mean, std = _mean_and_std(projected.detach(), orbit_size)
            if self.training:
                self.sigma_mean.copy_(mean)
                self.sigma_std.copy_(std)
                self.sigma_fitted.fill_(True)
        t = (projected - mean) / std
        rise = 1 - self.FLOOR
        rho = rise * nn.functional.elu(self.SLOPE * t / rise) + 1
        return rho / self.R0**2

    def mix(self, x: Float[Tensor, "atoms dim"], geometry: Geometry) -> Float[Tensor, "atoms dim"]:
        """Gather features from all images at every atom."""
        shape = (len(x), self.num_heads, self.head_dim)
        q, k, v = (p(x).view(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        inverse, real = self.inverse_square_sigma(q, geometry.orbit_size), self.real_heads
        bias = geometry.log_multiplicity
        if self.summation == "published_adaptive":
            bias = self._outside_box(inverse[:, :real], geometry)
        parts = (q[:, :real], k[:, :real], v[:, :real], -0.5 * inverse[:, :real])
        moments = None if self.moments is None else self.moments.values(x)
        if self.probe is None:
            y, moments = self._attend(*parts, moments, geometry, bias)
        else:
            bias = self.probe.biased(bias)
            y, moments = self._observed(*parts, moments, geometry, bias, self.probe)
        if geometry.periodic_sums is not None:
            variance = (self.R0 * self.RECIPROCAL_R0) ** 2 * inverse  # r̄_0^2 ρ
            q, k, v, variance = (t[:, real:].to(accumulator(t.dtype)) for t in (q, k, v, variance))
            with full_precision(q):
                other = reciprocal_attention(q, k, v, variance, geometry.periodic_sums)
            y = torch.cat([y, other], 1)
        gate = None
        if self.probe is not None:
            y, gate = self.probe.gate(y), self.probe.head_gate
        out = self.out_proj(y.flatten(1))
        if self.moments is None:
            return out
        gate = None if gate is None else gate[..., :real]
        return out + self.moments(moments, geometry.orbit_size, gate)

    forward = mix

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        u: Tensor | None,
        geometry: Geometry,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return y, and the moments [N, H, C, functions] of the values ``u``."""
        weight: Tensor = self.radial_weight
        lists = (geometry.distance, geometry.source, geometry.row_ptr)
        if u is None or self.moments is None:
            y = periodic_attention(
                q, k, v, a, weight, *lists, spacing=self.spacing, width=self.width, bias=bias
            )
            return cast(Tensor, y), None  # (y, lse) only with return_lse
        u_weight = self.moments.radial_weight
        if geometry.harmonics is not None:
            return periodic_moments(
                q, k, v, a, weight, u, u_weight, *lists, geometry.harmonics,
                spacing=self.spacing, width=self.width, bias=bias,
            )  # fmt: skip
        # Scalars are more values of the same weights; zeros at the end of q and k change no score.
        channels = u.shape[2]
        q, k = (nn.functional.pad(t, (0, channels)) for t in (q, k))
        q = q * ((self.head_dim + channels) / self.head_dim) ** 0.5
        v, weight = torch.cat([v, u], 2), torch.cat([weight, u_weight], 1)
        both = periodic_attention(
            q, k, v, a, weight, *lists, spacing=self.spacing, width=self.width, bias=bias
        )
        y, scalars = cast(Tensor, both).split([self.head_dim, channels], 2)
        return y, scalars[..., None]

    def _observed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        u: Tensor | None,
        geometry: Geometry,
        bias: Tensor | None,
        probe: LayerProbe,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the kernel's results in steps, between which the probe can observe and change."""
        distance, source = geometry.distance, geometry.source
        target, weights, _ = neighbor_weights(q, k, a, distance, source, geometry.row_ptr, bias)
        basis = radial_basis(distance, self.spacing, self.width, self.radial_weight.shape[-1])
        values = v[source] + torch.einsum("ek,hdk->ehd", basis, self.radial_weight)
        weights = probe.weigh(weights, values)
        y = torch.zeros_like(q).index_add(0, target, weights[..., None] * values)
        if u is None or self.moments is None:
            return y, None
        values = u[source] + torch.einsum("ek,hck->ehc", basis, self.moments.radial_weight)
        terms = (weights[..., None] * values)[..., None]
        if geometry.harmonics is not None:
            terms = terms * geometry.harmonics[:, None, None]
        return y, terms.new_zeros(*u.shape, terms.shape[-1]).index_add(0, target, terms)

    def _outside_box(self, inverse: Tensor, geometry: Geometry) -> Tensor:
        """Return -inf [E, H] for images beyond the range of an atom and head, else 0."""
        sigma = inverse.detach().rsqrt()
        assert geometry.image is not None  # ``geometry`` refuses batches without
        half_widths = adaptive_range(sigma, geometry.atom_cell)[geometry.target]
        outside = (geometry.image.abs()[:, None] > half_widths).any(-1)
        return torch.zeros_like(sigma[geometry.target]).masked_fill(outside, -math.inf)


def _mean_and_std(values: Tensor, orbit_size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased standard deviation of values [N, H] over the atoms of all rows.

    Processes that share a batch count together. The deviation of a single value, or of equal ones,
    is taken as 1.
    """
    size = values.new_ones(len(values)) if orbit_size is None else orbit_size
    number = summed(size.sum()) * values.shape[1]
    with full_precision(values):
        mean = summed((size @ values).sum()) / number
        variance = summed((size @ (values - mean).square()).sum()) / (number - 1)
    return mean, torch.where((number > 1) & (variance > 0), variance, 1.0).sqrt()


class CrystalformerBlock(nn.Module):
    """A residual block, x + attention(x), then x + MLP(x).

    T-Fixup initialisation replaces normalisation.
    """

    def __init__(
        self,
        attention: InfinitelyConnectedAttention,
        dim: int,
        ffn_dim: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.activation = activation()

    def forward(
        self, x: Float[Tensor, "atoms dim"], geometry: Geometry
    ) -> Float[Tensor, "atoms dim"]:
        """Return the features of the atoms after the block."""
        x = x + self.attention.mix(x, geometry)
        return x + self.linear2(self.activation(self.linear1(x)))


class Crystalformer(StructureNetwork):
    r"""A network for properties of a crystal from its periodic structure.

    Embedding of the elements, ``num_blocks`` of (infinitely connected attention, MLP), mean over
    the atoms of the cell, MLP. The defaults are the published network (853,505 trainable
    parameters).

    Args:
        num_targets: T, number of predicted properties.
        dim, num_heads, num_blocks, ffn_dim: sizes.
        num_radial: K Gaussians of the distance in the values; 0 leaves them out ("without psi").
        radial_max: centre of the last Gaussian, Å. That of the first is radial_max / K.
        radial_width: width of the Gaussians in units of their spacing.
        element_features: "one_hot" (published) or "properties" (for small data sets).
        summation: "converged" sums all images whose weight is above a tolerance;
            "published_adaptive" and "published_r2" sum the boxes of the published CUDA kernels and
            PyTorch path, for weights that were trained with them.
        reciprocal: "published" or "converged" puts the second half of the heads in reciprocal space
            (the paper's "dual space"), with the published wave vectors ``|m_t| <= 2`` or with all
            that matter; "none" leaves all heads in real space.
        moments: "scalar" adds squares of the attention's values, "angular" also products that know
            the angles between images (``AttentionMoments``); "none" as published.
        moment_channels: C values a head for them.
        moment_degree: largest degree l of the spherical harmonics, 1 to 3.
        activation: "relu" (published), or "silu", with which energies are smooth.

    Shapes: batch of B crystals -> [B, T], in the units of the normalised targets.

    Deviations from the paper: in ``converged`` mode the sum does not depend on the choice of the
    unit cell (the published boxes leave errors up to 1e-3 in skewed cells); element properties;
    moments; SiLU.
    """

    citations = ("crystalformer",)
    operators = ("periodic_attention",)
    elements: Tensor

    def __init__(
        self,
        num_targets: int = 1,
        dim: int = 128,
        num_heads: int = 8,
        num_blocks: int = 4,
        ffn_dim: int = 512,
        num_radial: int = 64,
        radial_max: float = 14.0,
        radial_width: float = 1.0,
        element_features: str = "one_hot",
        summation: str = "converged",
        reciprocal: str = "none",
        moments: str = "none",
        moment_channels: int = 2,
        moment_degree: int = 3,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("summation", summation, SUMMATIONS),
            ("reciprocal", reciprocal, RECIPROCAL),
            ("moments", moments, MOMENTS),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        check_sizes(dim, num_heads, num_blocks=num_blocks, ffn_dim=ffn_dim)
        if num_radial < 0 or radial_max <= 0 or radial_width <= 0:
            raise ValueError(
                "num_radial must be at least 0, radial_max and radial_width above 0; got "
                f"{num_radial}, {radial_max}, {radial_width}"
            )
        if moment_channels < 1 or not 1 <= moment_degree <= harmonics.MOST:
            raise ValueError(
                "moment_channels must be at least 1 and moment_degree 1 to "
                f"{harmonics.MOST}; got {moment_channels}, {moment_degree}"
            )
        self.summation, self.reciprocal = summation, reciprocal
        self.degree = moment_degree if moments == "angular" else 0
        table = element_table(element_features)
        self.register_buffer("elements", table)
        self.embedding = nn.Linear(table.shape[1], dim, bias=False)
        self.blocks = nn.ModuleList(
            CrystalformerBlock(
                InfinitelyConnectedAttention(
                    dim,
                    num_heads,
                    num_radial,
                    radial_max,
                    radial_width,
                    summation,
                    reciprocal != "none",
                    moments,
                    moment_channels,
                    moment_degree,
                ),
                dim,
                ffn_dim,
                ACTIVATIONS[activation],
            )
            for _ in range(num_blocks)
        )
        self.head = nn.Sequential(
            nn.Linear(dim, dim), ACTIVATIONS[activation](), nn.Linear(dim, num_targets)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Apply T-Fixup (Huang et al. 2020) as published: scale v, out and MLP, not q, k and W."""
        depth = len(self.blocks)
        scale = 0.67 * depth**-0.25
        nn.init.normal_(
            self.embedding.weight, std=self.embedding.out_features**-0.5 * (9 * depth) ** -0.25
        )
        for block in (m for m in self.modules() if isinstance(m, CrystalformerBlock)):
            attention = block.attention
            for linear in (attention.q_proj, attention.k_proj):
                nn.init.xavier_uniform_(linear.weight)
            for linear in (attention.v_proj, attention.out_proj, block.linear1, block.linear2):
                nn.init.xavier_uniform_(linear.weight, gain=scale)
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
            nn.init.normal_(attention.sigma_weight, std=attention.head_dim**-0.5)
            values = [attention.radial_weight]
            if (moments := attention.moments) is not None:
                values.append(moments.radial_weight)
                nn.init.xavier_uniform_(moments.u_proj.weight, gain=scale)
                nn.init.xavier_uniform_(moments.output.weight, gain=moments.GAIN)
            for weight in values:
                if count := weight.shape[-1]:
                    nn.init.xavier_uniform_(weight.flatten(0, 1), gain=count**-0.5)

    @property
    def sigma_max(self) -> float:
        """Return the upper bound of all Gaussian widths, Å."""
        return InfinitelyConnectedAttention.R0 / math.sqrt(InfinitelyConnectedAttention.FLOOR)

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the attention of all blocks; reciprocal heads have gates, but no edges."""
        modules = (m for m in self.modules() if isinstance(m, InfinitelyConnectedAttention))
        return [AttentionLayer.of(m, m.out_proj.weight, m.num_heads) for m in modules]

    def cutoff(self, tolerance: float, logit_spread: float = 0.0) -> float:
        """Return the distance in Å beyond which images weigh less than ``tolerance`` of the atom.

        ``logit_spread`` is how much larger a scaled score q_i . k_j may be than q_i . k_i.
        """
        return cutoff_for_tolerance(self.sigma_max, tolerance, logit_spread)

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """Return the rule of the images that this network sums.

        ``tolerance`` and ``symmetry`` (see ``ImageRule``) apply in converged mode only, and
        ``symmetry`` only where all heads work in real space, with distances.
        """
        if self.summation == "published_r2":
            return ImageRule(cutoff=0.0, box=True)
        if self.summation == "published_adaptive":
            return ImageRule(cutoff=3.5 * self.sigma_max + 0.01, box=True)
        symmetry = symmetry if self.reciprocal == "none" else 0.0
        return ImageRule(self.cutoff(tolerance), symmetry=symmetry, degree=self.degree)

    def geometry(self, batch: Structures) -> Geometry:
        """Return distances and neighbour pointers of a batch.

        Without symmetry, distances are differentiable by pos and cell.
        """
        source, target = batch.edge_index
        multiplicity, orbit_size = (
            getattr(batch, name, None) for name in ("multiplicity", "orbit_size")
        )
        reduced = multiplicity is not None or orbit_size is not None
        if reduced and (self.reciprocal != "none" or self.summation != "converged"):
            raise ValueError(
                f"reciprocal={self.reciprocal}, summation={self.summation}: expected a batch of "
                "all atoms; make its neighbour list with symmetry=0"
            )
        sums = None
        if self.reciprocal != "none":
            with full_precision(batch.pos):
                sums = periodic_sums(batch.pos, batch.cell, batch.batch, self.reciprocal)
        distance, directions = edge_length(batch), None
        if self.degree:
            directions = edge_harmonics(batch, self.degree)
            directions = torch.cat([torch.ones_like(distance)[:, None], directions], 1)
        return Geometry(
            distance=distance,
            source=source,
            row_ptr=torch.searchsorted(
                target, torch.arange(len(batch.z) + 1, device=target.device)
            ),
            target=target,
            image=batch.image,
            log_multiplicity=None if multiplicity is None else multiplicity.log(),
            orbit_size=orbit_size,
            atom_cell=batch.cell[batch.batch],
            periodic_sums=sums,
            harmonics=directions,
        )

    def embed(self, batch: Structures) -> Float[Tensor, "atoms dim"]:
        """Return the features of every atom after the last block."""
        geometry = self.geometry(batch)
        x = self.embedding(self.elements[batch.z - 1])
        for block in self.blocks:
            x = block(x, geometry)
        return x

    def features(self, batch: Structures) -> Float[Tensor, "crystals dim"]:
        """Return the mean over the atoms of every crystal, the input of ``readout``."""
        x = self.embed(batch)
        x = x.to(accumulator(x.dtype))
        size = getattr(batch, "orbit_size", None)
        size = x.new_ones(len(x)) if size is None else size
        total = x.new_zeros(batch.num_graphs, x.shape[1])
        total = total.index_add(0, batch.batch, x * size[:, None])
        atoms = x.new_zeros(batch.num_graphs).index_add(0, batch.batch, size)
        return total / atoms[:, None]

    def readout(self, features: Float[Tensor, "crystals dim"]) -> Float[Tensor, "crystals targets"]:
        """Return the targets of ``features``."""
        return self.head(features)

    def output_layer(self) -> nn.Linear:
        """Return the last layer, with one row per target."""
        return cast(nn.Linear, self.head[-1])


_REFERENCE_NAMES = {
    "self_attn.q_proj_weight": "attention.q_proj.weight",
    "self_attn.k_proj_weight": "attention.k_proj.weight",
    "self_attn.v_proj_weight": "attention.v_proj.weight",
    "self_attn.out_proj.weight": "attention.out_proj.weight",
    "self_attn.out_proj.bias": "attention.out_proj.bias",
    "linear1.weight": "linear1.weight",
    "linear1.bias": "linear1.bias",
    "linear2.weight": "linear2.weight",
    "linear2.bias": "linear2.bias",
}


def from_reference_state(
    state: Mapping[str, Tensor], summation: str = "published_adaptive"
) -> Crystalformer:
    """Build a network from weights named as in the authors' code (omron-sinicx/crystalformer).

    Sizes are read from the tensors; the Gaussians are the published ones (64 or K up to 14 Å).
    ``summation`` is the box that the weights were trained with: ``published_adaptive`` for the CUDA
    kernels, ``published_r2`` for the PyTorch path.

    Raises:
        KeyError: a tensor is missing; the message is its name.
    """
    state = dict(state)
    layers = "encoder.layers."
    depth = 1 + max((int(n.split(".")[2]) for n in state if n.startswith(layers)), default=-1)
    embedding = state["input_embeddings.weight"]
    ffn_dim = state[f"{layers}0.linear1.weight"].shape[0]
    converted = {"embedding.weight": embedding}
    for theirs, ours in ((0, 0), (3, 2)):
        for kind in ("weight", "bias"):
            converted[f"head.{ours}.{kind}"] = state[f"mlp.{theirs}.{kind}"]
    heads, head_dim, radial = state[f"{layers}0.self_attn.pe_dist_proj"].shape[-3:]
    for layer in range(depth):
        source, to = f"{layers}{layer}.", f"blocks.{layer}."
        for their_name, our_name in _REFERENCE_NAMES.items():
            converted[to + our_name] = state[source + their_name]
        biases = state[source + "self_attn.in_proj_bias"].chunk(3)
        for name, bias in zip("qkv", biases, strict=True):
            converted[f"{to}attention.{name}_proj.bias"] = bias
        inverse_std, minus_mean = state[source + "self_attn.gauss_scale"]
        widths = state[source + "self_attn.lattice_pos_weights"]
        converted |= {
            to + "attention.sigma_weight": widths.view(heads, head_dim),
            to + "attention.radial_weight": state[source + "self_attn.pe_dist_proj"].squeeze(0),
            to + "attention.sigma_mean": -minus_mean,
            to + "attention.sigma_std": 1 / inverse_std,
            to + "attention.sigma_fitted": torch.tensor(True),
        }
    network = Crystalformer(
        num_targets=len(state["mlp.3.bias"]),
        dim=heads * head_dim,
        num_heads=heads,
        num_blocks=depth,
        ffn_dim=ffn_dim,
        num_radial=radial,
        summation=summation,
    ).to(embedding.dtype)
    network.load_state_dict(converted | {"elements": network.elements})
    return network
