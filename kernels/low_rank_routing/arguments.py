"""Conversion of both forms of tokens to one: packed [T, H, D] with the ends of the meshes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Arguments: q, decode_q [1 or B, H, M, D]; k, v [T, H, D]; ptr [B + 1] int64, on the CPU."""

    q: Tensor
    decode_q: Tensor | None
    k: Tensor
    v: Tensor
    ptr: Tensor


def pack(
    q: Tensor, k: Tensor, v: Tensor, decode_q: Tensor | None, cu_seqlens: Tensor | None
) -> Packed:
    """Check shapes and pack; raise ValueError with the name of an argument that does not fit."""
    dims, form = (4, "[B, H, N, D]") if cu_seqlens is None else (3, "packed, [T, H, D]")
    if k.dim() != dims or k.shape != v.shape:
        raise ValueError(
            f"low_rank_routing: k {tuple(k.shape)} and v {tuple(v.shape)} must be {form} "
            f"{'without' if cu_seqlens is None else 'with'} cu_seqlens"
        )
    if cu_seqlens is None:
        ptr = torch.arange(k.shape[0] + 1) * k.shape[2]
        k, v = (x.transpose(1, 2).flatten(0, 1) for x in (k, v))
    else:
        ptr = cu_seqlens
        if ptr.dim() != 1 or len(ptr) < 2:
            raise ValueError("low_rank_routing: cu_seqlens must be [B + 1], with B of at least 1")
    meshes, (_, heads, dim) = len(ptr) - 1, k.shape
    if q.dim() == 3:
        q = q[None]
        decode_q = None if decode_q is None else decode_q[None]
    if q.dim() != 4 or q.shape[0] not in (1, meshes) or (q.shape[1], q.shape[3]) != (heads, dim):
        raise ValueError(
            f"low_rank_routing: q has shape {tuple(q.shape)}, expected [{heads}, M, {dim}] or "
            f"[{meshes}, {heads}, M, {dim}]"
        )
    if not q.shape[2]:
        raise ValueError("low_rank_routing: q has no latents (M = 0): expected at least one")
    if decode_q is not None and decode_q.shape != q.shape:
        raise ValueError(
            f"low_rank_routing: decode_q has shape {tuple(decode_q.shape)}, expected that of q, "
            f"{tuple(q.shape)}"
        )
    return Packed(q, decode_q, k, v, ptr)


def unpack(y: Tensor, like: Tensor) -> Tensor:
    """Return y [T, H, D] in the form of the tokens ``like``."""
    if like.dim() == 3:
        return y
    return y.view(like.shape[0], like.shape[2], *y.shape[1:]).transpose(1, 2)


def check_ends(ptr: Tensor, tokens: int) -> None:
    """Raise ValueError unless ``ptr`` rises from 0 to the number of tokens."""
    ends = ptr.tolist()
    if ends[0] != 0 or ends[-1] != tokens or ends != sorted(ends):
        raise ValueError(
            f"low_rank_routing: cu_seqlens must rise from 0 to the number of tokens ({tokens})"
        )
