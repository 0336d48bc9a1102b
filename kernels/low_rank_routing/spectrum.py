r"""The spectrum of the mixing matrix, which tells what a routing does to the fields of a mesh.

The matrix :math:`W = P^T E` of N x N weights, y = W v, is similar to :math:`J^T J` with

.. math::
    J_{mn} = e^{S_{mn}} \Big( \sum_{n'} e^{S_{mn'}} \sum_{m'} e^{S_{m'n}} \Big)^{-1/2}

so its eigenvalues are those of the M x M matrix :math:`J J^T`, real and in [0, 1], the largest 1
(of the constant field): O(N M^2 + M^3) instead of O(N^3).
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixing_spectrum(q: Tensor, k: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Compute eigenvalues and right eigenvectors of each head's mixing matrix, in float64.

    Args:
        q: latent queries [..., M, D].
        k: keys [..., N, D] of one mesh, with the same leading dimensions.
        scale: the factor of the logits.

    Returns:
        Eigenvalues [..., M], descending, and eigenvectors [..., N, M], :math:`W x_i = \lambda_i
        x_i` with :math:`|x_i| = 1`; the vector of an eigenvalue that is zero in double precision is
        zero.
    """
    scores = scale * q.double() @ k.double().mT
    lse_encode, lse_decode = scores.logsumexp(-1, keepdim=True), scores.logsumexp(-2, keepdim=True)
    j = (scores - (lse_encode + lse_decode) / 2).exp()
    eigenvalues, u = torch.linalg.eigh(j @ j.mT)
    eigenvalues, u = eigenvalues.flip(-1).clamp(0, 1), u.flip(-1)
    vectors = (-lse_decode / 2).exp().mT * (j.mT @ u)
    vectors = vectors / vectors.norm(dim=-2, keepdim=True).clamp(min=torch.finfo(u.dtype).tiny)
    resolved = eigenvalues > q.shape[-2] * torch.finfo(u.dtype).eps
    return eigenvalues, torch.where(resolved[..., None, :], vectors, torch.zeros_like(vectors))
