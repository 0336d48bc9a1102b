r"""Low-rank routing of meshes whose tokens are spread over processes (README.md section 5).

Processes exchange numbers of latents only: forward the largest logit, and the sums over a shard of
:math:`e^S` and :math:`e^S v` (H M (D + 2) numbers a mesh), backward :math:`\bar z` (H M D numbers).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import Packed, check_ends, pack, unpack
from .backends import find


def sharded_low_rank_routing(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decode_q: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Apply ``low_rank_routing`` to meshes whose tokens are spread over the processes of ``group``.

    Every process passes the same q and as many meshes, with its own tokens of each (none is fine),
    and gets y of its tokens. Gradients are those of the sum of all processes' losses. For q, as for
    every parameter that processes share, each process gets its own part; add these over the
    processes. All processes wait for each other, so each has to make this call, and to run backward
    if one does. Arguments, results and errors are otherwise those of ``low_rank_routing``; there
    are no second derivatives.

    Raises:
        RuntimeError: torch.distributed is not initialised, or this process is not in ``group``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "sharded_low_rank_routing: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group in every process first"
        )
    if dist.get_rank(group) < 0:
        raise RuntimeError(
            "sharded_low_rank_routing: this process is not in the group; only the group's members "
            "may call it"
        )
    packed = pack(q, k, v, decode_q, cu_seqlens)
    check_ends(packed.ptr, len(packed.k))
    if torch.is_autocast_enabled(k.device.type):  # as the operator on one process does
        second = packed.decode_q
        packed = Packed(
            packed.q.float(), second if second is None else second.float(), packed.k.float(),
            packed.v.float(), packed.ptr,
        )  # fmt: skip
    return unpack(_Sharded.apply(*packed, scale, backend, group), k)


def merge_shards(z: Tensor, lse: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Merge z [B, H, M, D] and lse [B, H, M] of all processes' shards into those of the meshes."""
    largest = lse.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    largest = largest.clamp_(min=torch.finfo(lse.dtype).min)  # -inf: a mesh without tokens
    mass = (lse - largest).exp()[..., None]
    sums = torch.cat([mass, mass * z], -1)
    dist.all_reduce(sums, dist.ReduceOp.SUM, group)
    mass, numerator = sums[..., :1], sums[..., 1:]
    z = torch.where(mass == 0, 0.0, numerator / mass)  # NaN stays NaN
    return z, largest + mass[..., 0].log()


class _Sharded(torch.autograd.Function):
    """The operator on one process's tokens, with its gradients."""

    @staticmethod
    def forward(ctx, q, decode_q, k, v, ptr, scale, backend, group):
        run = find(backend, k)
        z, lse_encode = run.encode(q, k, v, ptr, scale)
        z, lse_encode = merge_shards(z, lse_encode, group)
        y, lse_decode = run.decode(q if decode_q is None else decode_q, k, z, ptr, scale)
        ctx.save_for_backward(q, decode_q, k, v, ptr, y, z, lse_encode, lse_decode)
        ctx.run, ctx.scale, ctx.group = run, scale, group
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        q, decode_q, k, v, ptr, y, z, lse_encode, lse_decode = ctx.saved_tensors
        second = q if decode_q is None else decode_q
        grad_z = ctx.run.latent_gradient(grad_y, second, k, lse_decode, ptr, ctx.scale)
        dist.all_reduce(grad_z, dist.ReduceOp.SUM, ctx.group)
        grad_q, grad_decode_q, grad_k, grad_v = ctx.run.token_gradients(
            grad_y, q, decode_q, k, v, y, z, grad_z, lse_encode, lse_decode, ptr, ctx.scale
        )
        grads = (grad_q, None if decode_q is None else grad_decode_q, grad_k, grad_v)
        return *grads, None, None, None, None
