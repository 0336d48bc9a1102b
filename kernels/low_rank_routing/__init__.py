r"""Low-rank attention routing (FLARE, arXiv 2508.12594): N tokens exchange data through M latents.

``low_rank_routing`` is the public operator, ``sharded_low_rank_routing`` the same with the tokens
of a mesh spread over processes; README.md derives both, ``reference.py`` states them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..precision import accumulator
from . import reference
from .arguments import check_ends, pack, unpack
from .backends import BACKENDS, find
from .sharded import sharded_low_rank_routing

__all__ = ["BACKENDS", "low_rank_routing", "sharded_low_rank_routing"]


def low_rank_routing(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decode_q: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    r"""Gather tokens into latents, and give every token a mixture of the latents.

    .. math::
        z_m = \sum_n \frac{e^{s q_m \cdot k_n}}{\sum_{n'} e^{s q_m \cdot k_{n'}}} v_n, \qquad
        y_n = \sum_m \frac{e^{s q_m \cdot k_n}}{\sum_{m'} e^{s q_{m'} \cdot k_n}} z_m

    for each head and mesh, in O(N M D). The tokens' mixing matrix is row-stochastic, of rank M or
    less, and its eigenvalues lie in [0, 1]. First and second derivatives are exact.

    Args:
        q: latent queries [H, M, D], or [B, H, M, D] where they differ between meshes.
        k: keys [B, H, N, D] (cheapest as a transposed view of [B, N, H, D]), or packed meshes of
            different sizes [T, H, D].
        v: values, shaped as ``k``.
        decode_q: queries of the second softmax, shaped as ``q``; by default ``q`` itself.
        cu_seqlens: mesh b of packed tokens is ``cu_seqlens[b]:cu_seqlens[b + 1]``: [B + 1], int64,
            on the CPU. An empty mesh has z = 0.
        scale: the factor s; FLARE takes 1, FLARE++ :math:`D^{-1/2}`.
        backend: "auto", or a key of ``BACKENDS``.

    Returns:
        y, shaped as ``v``.

    Raises:
        BackendError: the backend is unknown or refuses the call.
        ValueError: shapes disagree, or ``cu_seqlens`` does not run from 0 to T.
    """
    packed = pack(q, k, v, decode_q, cu_seqlens)
    return unpack(torch.ops.matattn.low_rank_routing(*packed, scale, backend)[0], k)


# Defined by schema for the same reason as periodic attention: custom_op imports TorchDynamo. Here
# tokens are packed [T, H, D], and q is [1, H, M, D] or [B, H, M, D].
_INPUTS = "Tensor q, Tensor? decode_q, Tensor k, Tensor v, Tensor ptr"
torch.library.define(
    "matattn::low_rank_routing",
    f"({_INPUTS}, float scale, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "matattn::low_rank_routing_backward",
    f"(Tensor grad_y, {_INPUTS}, Tensor y, Tensor z, Tensor lse_encode, Tensor lse_decode, "
    "float scale, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("matattn::low_rank_routing", ("cpu", "cuda"))
def _forward(q, decode_q, k, v, ptr, scale, backend):
    run = find(backend, k)
    ptr = ptr.cpu()
    check_ends(ptr, len(k))
    z, lse_encode = run.encode(q, k, v, ptr, scale)
    y, lse_decode = run.decode(q if decode_q is None else decode_q, k, z, ptr, scale)
    return y, z, lse_encode, lse_decode


@torch.library.impl("matattn::low_rank_routing_backward", ("cpu", "cuda"))
def _backward(grad_y, q, decode_q, k, v, ptr, y, z, lse_encode, lse_decode, scale, backend):
    run = find(backend, k)
    ptr = ptr.cpu()
    second = q if decode_q is None else decode_q
    grad_z = run.latent_gradient(grad_y, second, k, lse_decode, ptr, scale)
    return run.token_gradients(
        grad_y, q, decode_q, k, v, y, z, grad_z, lse_encode, lse_decode, ptr, scale
    )


@torch.library.register_fake("matattn::low_rank_routing")
def _fake_forward(q, decode_q, k, v, ptr, scale, backend):
    meshes = ptr.shape[0] - 1
    _, heads, latents, dim = q.shape
    dtype = accumulator(k.dtype)
    return (
        k.new_empty(k.shape),
        k.new_empty(meshes, heads, latents, dim, dtype=dtype),
        k.new_empty(meshes, heads, latents, dtype=dtype),
        k.new_empty(k.shape[0], heads, dtype=dtype),
    )


@torch.library.register_fake("matattn::low_rank_routing_backward")
def _fake_backward(grad_y, q, decode_q, k, v, ptr, y, z, lse_encode, lse_decode, scale, backend):
    grad_decode_q = q.new_empty(0) if decode_q is None else q.new_empty(q.shape)
    return q.new_empty(q.shape), grad_decode_q, k.new_empty(k.shape), k.new_empty(k.shape)


def _save_forward(ctx, inputs, output):
    *tensors, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _forward_autograd(ctx, grad_y, *_):
    q, decode_q, k, v, ptr, *outputs = ctx.saved_tensors
    if grad_y is None:
        return (None,) * 7
    grad_q, grad_decode_q, grad_k, grad_v = torch.ops.matattn.low_rank_routing_backward(
        grad_y, q, decode_q, k, v, ptr, *outputs, ctx.scale, ctx.backend
    )
    return grad_q, None if decode_q is None else grad_decode_q, grad_k, grad_v, None, None, None


torch.library.register_autograd(
    "matattn::low_rank_routing", _forward_autograd, setup_context=_save_forward
)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.scale = inputs[10]


def _backward_autograd(ctx, *grads_of_grads):
    """Return second derivatives, by the reference formula; y, z and lse have none themselves."""
    *tensors, ptr = ctx.saved_tensors
    with torch.enable_grad():
        inputs: list[Any] = [None if t is None else t.detach().requires_grad_() for t in tensors]
        grad_y, *leaves = inputs
        q, decode_q, k, v = leaves
        y = reference.routing(q, decode_q, k, v, ptr, ctx.scale)
        used = [t for t in leaves if t is not None]
        grads = torch.autograd.grad(y, used, grad_y, create_graph=True)
        received = [g for t, g in zip(leaves, grads_of_grads, strict=True) if t is not None]
        present = [t for t in inputs if t is not None]
        second = iter(torch.autograd.grad(grads, present, received, allow_unused=True))
    return *(None if t is None else next(second) for t in inputs), *(None,) * 7


torch.library.register_autograd(
    "matattn::low_rank_routing_backward", _backward_autograd, setup_context=_save_backward
)

# Under autocast the sums run in float32, on inputs that are converted if they are shorter.
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("matattn::low_rank_routing", _device, torch.float32)
