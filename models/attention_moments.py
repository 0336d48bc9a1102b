r"""Moments of an atom's attention: what a network of distances sees of angles.

Per head h, channel c and spherical harmonic :math:`C_{lm}` of the direction of image n of atom j,

.. math::
    M_{i,hc,lm} = \sum_j \sum_n P_{ijn,h} (u_{j,hc} + (U_h b(d_{ijn}))_c) C_{lm}(\hat r_{ijn})

with the weights P of the layer's attention. Their products over m do not change under rotations and
reflections, and by the addition theorem they are sums over pairs of images weighted by Legendre
polynomials of the angle between them. Equivalent atoms have moments that are turned against each
other, and so equal products.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matattn.kernels.precision import accumulator, full_precision
from matattn.structures.harmonics import count
from matattn.training.processes import summed


class AttentionMoments(nn.Module):
    r"""The values of the moments, and the map of their invariants to the features of the atoms.

    .. math::
        p_{i,hl,cc'} = \sum_m M_{hc,lm} M_{hc',lm}, \qquad
        x_i \leftarrow \mathrm{Linear}(p / \sqrt{1 + \sum_c p_{cc}})

    The root keeps them from growing with the depth as polynomials do. Before it, the moments of
    every degree l are divided by their root mean square over the atoms, heads and channels of the
    first training batch, which is then frozen and saved with the weights, as sigma's statistics
    are; before any training it is that of every batch.

    Shapes: M [N, H, C, 1 + F] with l = 0 first -> [N, dim].
    """

    GAIN = 0.1  # of the initial output
    VANISHING = 1e-4  # of the size at l = 0: rounding, where all sites are too symmetric for an l
    scale: Tensor
    fitted: Tensor

    def __init__(
        self, dim: int, num_heads: int, num_radial: int, channels: int, degree: int
    ) -> None:
        super().__init__()
        self.channels, self.degree = channels, degree
        self.functions = 1 + count(degree)
        self.u_proj = nn.Linear(dim, num_heads * channels)
        self.radial_weight = nn.Parameter(torch.empty(num_heads, channels, num_radial))
        pairs = list(combinations_with_replacement(range(channels), 2))
        self.first, self.second = ([pair[side] for pair in pairs] for side in (0, 1))
        self.equal = [number for number, (c, other) in enumerate(pairs) if c == other]
        self.output = nn.Linear(num_heads * (degree + 1) * len(pairs), dim)
        self.register_buffer("scale", torch.ones(degree + 1))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def values(self, x: Float[Tensor, "atoms dim"]) -> Float[Tensor, "atoms heads channels"]:
        """Return u of every atom and head."""
        return self.u_proj(x).view(len(x), -1, self.channels)

    def forward(
        self,
        moments: Float[Tensor, "atoms heads channels functions"],
        orbit_size: Float[Tensor, " atoms"] | None = None,
        head_gate: Tensor | None = None,
    ) -> Float[Tensor, "atoms dim"]:
        """Return what the moments add to the features of the atoms."""
        dtype = accumulator(moments.dtype)
        by_degree = moments.to(dtype).split(
            [2 * degree + 1 for degree in range(self.degree + 1)], dim=-1
        )
        scale = self._scale(by_degree, orbit_size)
        invariants = []
        for degree, part in enumerate(by_degree):
            part = part / scale[degree]
            products = (part[:, :, self.first] * part[:, :, self.second]).sum(-1)
            trace = products[:, :, self.equal].sum(-1, keepdim=True)
            invariants.append(products / (1 + trace).sqrt())
        found = torch.stack(invariants, dim=2)  # [N, H, l, pairs]
        if head_gate is not None:
            found = found * head_gate[..., None, None]
        return self.output(found.flatten(1))

    def _scale(self, by_degree: tuple[Tensor, ...], orbit_size: Tensor | None) -> Tensor:
        """Return the root mean squares of the degrees [L + 1], frozen in the first training."""
        if self.fitted:
            return self.scale
        with torch.no_grad(), full_precision(by_degree[0]):
            first = by_degree[0]
            size = first.new_ones(len(first)) if orbit_size is None else orbit_size.to(first)
            number = summed(size.sum()) * first[0, ..., 0].numel()
            squares = [size @ part.square().sum(-1).flatten(1).sum(1) for part in by_degree]
            scale = (summed(torch.stack(squares)) / number).sqrt()
            scale = torch.where(scale > self.VANISHING * scale[0], scale, 1.0)
            if self.training:
                self.scale.copy_(scale)
                self.fitted.fill_(True)
        return scale
