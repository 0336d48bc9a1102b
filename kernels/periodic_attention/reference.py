r"""The plain formulas of infinitely connected attention: slow, dense, the reference for tests.

Taniai et al., "Crystalformer", ICLR 2024 (arXiv 2403.11686), section 3. Atom j of the unit cell has
an image at :math:`p_j + n L` for every integer triple n, at distance
:math:`d_{ijn} = |p_j + n L - p_i|` from atom i of the cell. With the weights of atom i and a head

.. math::
    \phi_{ijn} = a_i d_{ijn}^2, \qquad a_i = -1 / (2 \sigma_i^2), \qquad \psi_{ijn} = W b(d_{ijn})

.. math::
    y_i = \frac{1}{Z_i} \sum_j \sum_n e^{q_i \cdot k_j / \sqrt{D} + \phi_{ijn}} (v_j + \psi_{ijn})
        = \sum_j \mathrm{softmax}_j (q_i \cdot k_j / \sqrt{D} + \alpha_{ij}) (v_j + W \beta_{ij})

.. math::
    \alpha_{ij} = \log \sum_n e^{\phi_{ijn}}, \qquad
    \beta_{ij} = \frac{\sum_n e^{\phi_{ijn}} b(d_{ijn})}{\sum_n e^{\phi_{ijn}}}

The moments of the same weights, with values of C channels and any functions f of the image,

.. math::
    M_{icf} = \sum_j \sum_n P_{ijn} (u_{jc} + (U b(d_{ijn}))_c) f_{ijn}

carry the directions when f are spherical harmonics.

There are two independent implementations of y. ``image_sums`` + ``pair_attention`` sum over images
first, as in the paper; ``neighbor_attention`` is one softmax over a flat list of (j, n), as in
every fast backend. Autograd differentiates both, to any order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """What the moments need beside the weights."""

    u: Tensor  # [N, H, C] values of C channels
    weight: Tensor  # U [H, C, K]
    table: Tensor  # f [E, F], functions of every image

    @property
    def sizes(self) -> tuple[int, int]:
        """Return C and F."""
        return self.u.shape[2], self.table.shape[1]


def radial_basis(distance: Tensor, spacing: float, width: float, count: int) -> Tensor:
    r"""Compute Gaussians :math:`b_k(d) = \exp(-(d - \mu_k)^2 / 2 s^2)`, k = 1..count.

    Their centres are :math:`\mu_k = k \cdot` spacing; the first is one spacing away from zero, as
    in the published code. distance [...] Å, spacing and width s in Å; returns [..., count].
    """
    centers = torch.arange(1, count + 1, dtype=distance.dtype, device=distance.device) * spacing
    return torch.exp(-0.5 * ((distance[..., None] - centers) / width) ** 2)


def safe_distance(vector: Tensor) -> Tensor:
    """Return lengths of ``vector`` [..., 3] Å, with gradient 0 (not NaN) for self pairs, at 0 Å."""
    squared = vector.square().sum(-1)
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())


def adaptive_range(sigma: Tensor, cell: Tensor, margin: float = 0.01) -> Tensor:
    r"""Return half-widths :math:`R_t` of the published box of images |n_t| <= R_t.

    :math:`R_t = \max(\lceil (3.5 \sigma + margin) |b_t| / 2\pi \rceil, 2)` with sigma [..., H] Å of
    each atom and head, and cell [..., 3, 3] Å (rows are lattice vectors) of the same leading shape;
    returns integers [..., H, 3]. The published kernels add the margin of 0.01 Å, the paper does
    not.
    """
    planes = torch.linalg.inv(cell).norm(dim=-2)  # |b_t| / 2 pi = 1 / spacing of lattice planes t
    reach = torch.ceil((3.5 * sigma[..., None] + margin) * planes[..., None, :])
    return reach.clamp_min(2).long()


def box_images(half_widths: Tensor) -> Tensor:
    """Return all integer triples with |n_t| <= half_widths[t]: [M, 3]."""
    ranges = [torch.arange(-int(r), int(r) + 1) for r in half_widths]
    return torch.cartesian_prod(*ranges)


def sphere_images(pos: Tensor, cell: Tensor, cutoff: float) -> Tensor:
    """Return the images [M, 3] that bring some atom within ``cutoff`` Å of another one."""
    inverse = torch.linalg.inv(cell)
    frac = pos @ inverse
    spread = frac.amax(0) - frac.amin(0)
    images = box_images(torch.ceil(cutoff * inverse.norm(dim=0) + spread))
    vectors = (pos[None] - pos[:, None]).flatten(0, 1) + (images.to(pos) @ cell)[:, None]
    return images[(vectors.square().sum(-1) <= cutoff**2).any(1)]


def image_sums(
    pos: Tensor,
    cell: Tensor,
    a: Tensor,
    images: Tensor,
    *,
    spacing: float,
    width: float,
    count: int,
    half_widths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the sums over images, alpha [N, N, H] and beta [N, N, H, K], of one crystal.

    pos [N, 3] Å, cell [3, 3] Å, a [N, H] 1/Å^2, images [M, 3]; half_widths [N, H, 3] limits each
    atom and head i to its own box ``|n_t| <= half_widths`` (the published rule). Index order is
    [query i, key j, head].
    """
    offsets = images.to(pos.dtype) @ cell
    distance = safe_distance(pos[None, :, None] + offsets - pos[:, None, None])  # [i, j, n]
    phi = a[:, None, None, :] * distance.square()[..., None]  # [i, j, n, h]
    if half_widths is not None:
        outside = (images.abs()[:, None] > half_widths[:, None]).any(-1)  # [i, n, h]
        phi = phi.masked_fill(outside[:, None], -math.inf)
    alpha = torch.logsumexp(phi, dim=2)
    basis = radial_basis(distance, spacing, width, count)
    beta = torch.einsum("ijnh,ijnk->ijhk", torch.exp(phi - alpha[:, :, None]), basis)
    return alpha, beta


def pair_attention(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute y [N, H, D] and the logits' log-sum-exp [N, H] from the image sums of one crystal.

    q, k, v [N, H, D]; alpha [N, N, H], beta [N, N, H, K] from ``image_sums``; weight W [H, D, K].
    """
    logits = torch.einsum("ihd,jhd->ijh", q, k) / math.sqrt(q.shape[-1]) + alpha
    attention = logits.softmax(dim=1)
    values = v[None] + torch.einsum("ijhk,hdk->ijhd", beta, weight)
    return torch.einsum("ijh,ijhd->ihd", attention, values), logits.logsumexp(dim=1)


def neighbor_weights(
    q: Tensor,
    k: Tensor,
    a: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return target atoms [E], softmax weights [E, H] over each atom's (j, n) and lse [N, H]."""
    atoms, heads, dim = q.shape
    target = torch.repeat_interleave(torch.arange(atoms, device=q.device), row_ptr.diff())
    logits = (q[target] * k[source]).sum(-1) / math.sqrt(dim)
    logits = logits + a[target] * distance.square()[:, None]
    if bias is not None:
        logits = logits + (bias[:, None] if bias.dim() == 1 else bias)
    largest = logits.new_full((atoms, heads), -math.inf).scatter_reduce(
        0, target[:, None].expand(-1, heads), logits.detach(), "amax"
    )
    weights = torch.exp(logits - largest[target])
    total = torch.zeros_like(largest).index_add(0, target, weights)
    return target, weights / total[target], largest + total.log()


def neighbor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    spacing: float,
    width: float,
    moments: Moments | None = None,
) -> tuple[Tensor, ...]:
    """Compute y, log-sum-exp and, if asked for, M [N, H, C, F] from a flat neighbour list.

    Arguments are those of ``__init__``.
    """
    target, weights, lse = neighbor_weights(q, k, a, distance, source, row_ptr, bias)
    basis = radial_basis(distance, spacing, width, weight.shape[-1])
    values = v[source] + torch.einsum("ek,hdk->ehd", basis, weight)
    y = torch.zeros_like(q).index_add(0, target, weights[..., None] * values)
    if moments is None:
        return y, lse
    values = moments.u[source] + torch.einsum("ek,hck->ehc", basis, moments.weight)
    terms = (weights[..., None] * values)[..., None] * moments.table[:, None, None]
    shape = (*moments.u.shape, moments.table.shape[1])
    return y, lse, terms.new_zeros(shape).index_add(0, target, terms)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    moments: Moments | None,
    spacing: float,
    width: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute y, lse, the mean basis c [N, H, K] and M (or nothing), with sums in float64."""
    dtype = q.dtype
    q, k, v, a, weight, distance = (t.double() for t in (q, k, v, a, weight, distance))
    bias = None if bias is None else bias.double()
    exact = moments and Moments(*(t.double() for t in moments))
    y, lse, *summed = neighbor_attention(
        q, k, v, a, weight, distance, source, row_ptr, bias, spacing, width, exact
    )
    target, weights, _ = neighbor_weights(q, k, a, distance, source, row_ptr, bias)
    basis = radial_basis(distance, spacing, width, weight.shape[-1])
    mean = y.new_zeros(*q.shape[:2], weight.shape[-1])
    mean = mean.index_add(0, target, weights[..., None] * basis[:, None])
    m = summed[0] if summed else y.new_empty(0)
    return y.to(dtype), lse.to(dtype), mean.to(dtype), m.to(dtype)


def backward(
    grad_y: Tensor,
    grad_lse: Tensor,
    grad_m: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    moments: Moments | None,
    y: Tensor,
    lse: Tensor,
    mean_basis: Tensor,
    m: Tensor,
    spacing: float,
    width: float,
    distance_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, ...]:
    """Compute closed-form gradients (README.md sections 3 and 3a).

    They are those of q, k, v, a, weight, distance, u, U and the table; empty where not asked for.
    """
    dtype = q.dtype
    grad_y, grad_lse, grad_m, q, k, v, a, weight, distance = (
        t.double() for t in (grad_y, grad_lse, grad_m, q, k, v, a, weight, distance)
    )
    bias = None if bias is None else bias.double()
    target, p, _ = neighbor_weights(q, k, a, distance, source, row_ptr, bias)
    count = weight.shape[-1]
    basis = radial_basis(distance, spacing, width, count)
    centers = torch.arange(1, count + 1, dtype=q.dtype, device=q.device) * spacing
    slope = basis * (centers - distance[:, None]) / width**2  # b'(d)

    values = v[source] + torch.einsum("ek,hdk->ehd", basis, weight)
    received = p[..., None] * grad_y[target]  # gradient of each image's value v_j + W b
    scores = (grad_y[target] * values).sum(-1)  # of each weight before normalisation
    along = torch.einsum("ehd,hdk,ek->e", received, weight, slope)
    grad_u, grad_u_weight, grad_table = (q.new_empty(0) for _ in range(3))
    if moments is not None:
        u, u_weight, table = (t.double() for t in moments)
        values = u[source] + torch.einsum("ek,hck->ehc", basis, u_weight)
        by_value = torch.einsum("ehcf,ef->ehc", grad_m[target], table)
        scores = scores + (by_value * values).sum(-1)
        sent = p[..., None] * by_value  # gradient of each image's value u_j + U b
        grad_u = torch.zeros_like(u).index_add(0, source, sent)
        grad_u_weight = torch.einsum("ehc,ek->hck", sent, basis)
        along = along + torch.einsum("ehc,hck,ek->e", sent, u_weight, slope)
        if table_grad:
            grad_table = torch.einsum("eh,ehc,ehcf->ef", p, values, grad_m[target])

    mean = torch.zeros_like(a).index_add(0, target, p * scores)
    d_logits = p * (scores - mean[target] + grad_lse[target])
    scaled = d_logits[..., None] / math.sqrt(q.shape[-1])
    grad_distance = (2 * a[target] * distance[:, None] * d_logits).sum(-1) + along
    grads = (
        torch.zeros_like(q).index_add(0, target, scaled * k[source]),
        torch.zeros_like(k).index_add(0, source, scaled * q[target]),
        torch.zeros_like(v).index_add(0, source, received),
        torch.zeros_like(a).index_add(0, target, d_logits * distance.square()[:, None]),
        torch.einsum("ehd,ek->hdk", received, basis),
        grad_distance if distance_grad else q.new_empty(0),
        grad_u,
        grad_u_weight,
        grad_table,
    )
    return tuple(grad.to(dtype) for grad in grads)
