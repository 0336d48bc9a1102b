r"""The plain formulas in float64, the reference for all other backends.

Tokens are packed: k, v, y [T, H, D], mesh b being the rows ``ptr[b]:ptr[b + 1]``. Latent queries q
are [1, H, M, D] (the same for all meshes) or [B, H, M, D]; z is [B, H, M, D]. Per mesh and head,

.. math::
    S_{mn} = s q_m \cdot k_n, \quad E = \mathrm{softmax}_n S, \quad P = \mathrm{softmax}_m S, \quad
    z = E v, \quad y = P^T z.

The last four public functions are the two passes forward and the two passes backward. Each needs
at most one reduction over the tokens of a mesh, so that a mesh can be cut into shards between them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..precision import accumulator


def routing(
    q: Tensor, decode_q: Tensor | None, k: Tensor, v: Tensor, ptr: Tensor, scale: float
) -> Tensor:
    """Compute y [T, H, D] in differentiable PyTorch, in the precision of the inputs."""
    decode_q = q if decode_q is None else decode_q
    parts = []
    for mesh, rows in _meshes(ptr):
        encode = _scores(q, k, mesh, rows, scale).softmax(-1)
        decode = _scores(decode_q, k, mesh, rows, scale).softmax(-2)
        latents = torch.einsum("hmn,nhd->hmd", encode, v[rows])
        parts.append(torch.einsum("hmn,hmd->nhd", decode, latents))
    return torch.cat(parts)


def encode(q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    r"""Compute latents z [B, H, M, D] and :math:`\log \sum_n e^{S_{mn}}` [B, H, M]."""
    meshes = len(ptr) - 1
    z = q.new_zeros(meshes, *q.shape[1:], dtype=torch.float64)
    lse = q.new_full((meshes, *q.shape[1:3]), -torch.inf, dtype=torch.float64)
    for mesh, rows in _meshes(ptr):
        scores = _scores(q.double(), k.double(), mesh, rows, scale)
        z[mesh] = torch.einsum("hmn,nhd->hmd", scores.softmax(-1), v[rows].double())
        lse[mesh] = scores.logsumexp(-1)
    return _keep(z, k), _keep(lse, k)


def decode(q: Tensor, k: Tensor, z: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    r"""Compute y [T, H, D] and :math:`\log \sum_m e^{S_{mn}}` [T, H]."""
    y = k.new_empty(k.shape, dtype=torch.float64)
    lse = k.new_empty(k.shape[:2], dtype=torch.float64)
    for mesh, rows in _meshes(ptr):
        scores = _scores(q.double(), k.double(), mesh, rows, scale)
        y[rows] = torch.einsum("hmn,hmd->nhd", scores.softmax(-2), z[mesh].double())
        lse[rows] = scores.logsumexp(-2).T
    return y.to(k.dtype), _keep(lse, k)


def latent_gradient(
    grad_y: Tensor, q: Tensor, k: Tensor, lse_decode: Tensor, ptr: Tensor, scale: float
) -> Tensor:
    r"""Compute :math:`\bar z = P \bar y` [B, H, M, D]."""
    grad_z = q.new_zeros(len(ptr) - 1, *q.shape[1:], dtype=torch.float64)
    for mesh, rows in _meshes(ptr):
        scores = _scores(q.double(), k.double(), mesh, rows, scale)
        p = (scores - lse_decode[rows].T[:, None].double()).exp()
        grad_z[mesh] = torch.einsum("hmn,nhd->hmd", p, grad_y[rows].double())
    return _keep(grad_z, k)


def token_gradients(
    grad_y: Tensor,
    q: Tensor,
    decode_q: Tensor | None,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    z: Tensor,
    grad_z: Tensor,
    lse_encode: Tensor,
    lse_decode: Tensor,
    ptr: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Compute the gradients for q, decode_q (empty if it is None), k and v.

    .. math::
        \bar S = P \circ (z \bar y^T - \bar y \cdot y) + E \circ (\bar z v^T - \bar z \cdot z) \\
        \bar v = E^T \bar z, \quad \bar k = s \bar S^T q, \quad \bar q = s \bar S k
    """
    dtype = k.dtype
    latents = [t.double() for t in (z, grad_z, lse_encode)]
    first, second = q.double(), q.double() if decode_q is None else decode_q.double()
    grad_first, grad_second = torch.zeros_like(first), torch.zeros_like(second)
    grad_k, grad_v = (torch.empty_like(k, dtype=torch.float64) for _ in range(2))
    for mesh, rows in _meshes(ptr):
        z_, grad_z_, lse_e = (t[mesh] for t in latents)
        dy, v_, y_ = (t[rows].double().transpose(0, 1) for t in (grad_y, v, y))  # [H, N, D]
        lse_d = lse_decode[rows].double().T[:, None]
        e = (_scores(first, k.double(), mesh, rows, scale) - lse_e[..., None]).exp()
        p = (_scores(second, k.double(), mesh, rows, scale) - lse_d).exp()
        grad_p = p * (z_ @ dy.mT - (dy * y_).sum(-1)[:, None])
        grad_e = e * (grad_z_ @ v_.mT - (grad_z_ * z_).sum(-1, keepdim=True))
        index = mesh % len(q)
        k_ = k[rows].double().transpose(0, 1)
        grad_first[index] += scale * grad_e @ k_
        grad_second[index] += scale * grad_p @ k_
        grads_k = grad_e.mT @ first[index] + grad_p.mT @ second[index]
        grad_k[rows] = scale * grads_k.transpose(0, 1)
        grad_v[rows] = (e.mT @ grad_z_).transpose(0, 1)
    if decode_q is None:
        grad_first, grad_second = grad_first + grad_second, grad_first.new_empty(0)
    return grad_first.to(dtype), grad_second.to(dtype), grad_k.to(dtype), grad_v.to(dtype)


def _meshes(ptr: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield number and rows of every mesh that has tokens."""
    ends = ptr.tolist()
    for mesh, (begin, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        if end > begin:
            yield mesh, slice(begin, end)


def _scores(q: Tensor, k: Tensor, mesh: int, rows: slice, scale: float) -> Tensor:
    """Compute S [H, M, N] of one mesh."""
    return scale * torch.einsum("hmd,nhd->hmn", q[mesh % len(q)], k[rows])


def _keep(x: Tensor, k: Tensor) -> Tensor:
    """Return latents or sums in the precision that is kept for the backward pass."""
    return x.to(accumulator(k.dtype))
