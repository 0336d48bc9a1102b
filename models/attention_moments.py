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

SMALL = 1e-3  # traces for which a logarithm has too few digits


class AttentionMoments(nn.Module):
    r"""The values of the moments, and the map of their invariants to the features of the atoms.

    .. math::
        p_{i,hl,cc'} = \sum_m M_{hc,lm} M_{hc',lm}, \qquad t = \sum_c p_{cc}, \qquad
        x_i \leftarrow \mathrm{Linear}(p \ln(1 + t) / t)

    The logarithm keeps features from growing from block to block: with a root, which is linear in
    them, trainings of some thousand steps exploded. Before it, the moments of every degree l are
    divided by their root mean square over the atoms, heads and channels of the first training
    batch, which is then frozen and saved with the weights, as sigma's statistics are; before any
    training it is that of every batch.

    Shapes: M [N, H, C, 1 + F] with l = 0 first -> [N, dim].
    """

    GAIN = 0.1  # of the initial output
    VANISHING = 1e-4  # of the size at l = 0: rounding, where all sites are too symmetric for an l
    degrees: Tensor  # 1 where a function [1 + F] has a degree [L + 1]
    size: Tensor
    fitted: Tensor

    def __init__(
        self, dim: int, num_heads: int, num_radial: int, channels: int, degree: int
    ) -> None:
        super().__init__()
        self.channels, self.degree = channels, degree
        self.functions = 1 + count(degree)
        self.u_proj = nn.Linear(dim, num_heads * channels)
        self.radial_weight = nn.Parameter(torch.empty(num_heads, channels, num_radial))
        pairs = combinations_with_replacement(range(channels), 2)
        self.pairs = [c * channels + other for c, other in pairs]  # of all channels with all
        self.output = nn.Linear(num_heads * (degree + 1) * len(self.pairs), dim)
        orders = torch.tensor([order for order in range(degree + 1) for _ in range(2 * order + 1)])
        degrees = (orders[:, None] == torch.arange(degree + 1)).float()
        self.register_buffer("degrees", degrees, persistent=False)
        self.register_buffer("size", torch.ones(degree + 1))
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
        moments = moments.to(accumulator(moments.dtype))
        with full_precision(moments):
            by_degree = self.degrees.to(moments.dtype)
            size = self._size(moments, by_degree, orbit_size)
            # A matrix sums over the m of each l; [N, H, C, C, l], and each pair of channels once.
            products = (moments[:, :, :, None] * moments[:, :, None]) @ (by_degree / size.square())
        trace = products.diagonal(dim1=2, dim2=3).sum(-1)
        products = products.flatten(2, 3)[:, :, self.pairs].transpose(2, 3)
        found = products * _damping(trace)[..., None]  # [N, H, l, pairs]
        if head_gate is not None:
            found = found * head_gate[..., None, None]
        return self.output(found.flatten(1))

    def _size(self, moments: Tensor, by_degree: Tensor, orbit_size: Tensor | None) -> Tensor:
        """Return the root mean squares of the degrees [L + 1], frozen in the first training."""
        if self.fitted:
            return self.size
        with torch.no_grad():
            atoms = moments.new_ones(len(moments)) if orbit_size is None else orbit_size.to(moments)
            number = summed(atoms.sum()) * moments[0, ..., 0].numel()
            squares = atoms @ (moments.square() @ by_degree).sum((1, 2))
            size = (summed(squares) / number).sqrt()
            size = torch.where(size > self.VANISHING * size[0], size, 1.0)
            if self.training:
                self.size.copy_(size)
                self.fitted.fill_(True)
        return size


def _damping(trace: Tensor) -> Tensor:
    """Return ln(1 + t) / t, which is smooth at 0."""
    far = trace > SMALL
    safe = torch.where(far, trace, 1.0)
    return torch.where(far, torch.log1p(safe) / safe, 1 - trace / 2 + trace.square() / 3)
