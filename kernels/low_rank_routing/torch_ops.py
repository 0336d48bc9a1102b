"""The ``torch`` backend: vectorised PyTorch on any device (README.md section 3).

On CPUs, PyTorch's flash attention computes the two softmaxes forward. Elsewhere, and backward,
scores are computed for a chunk of tokens at a time. Arguments and results are those of
``reference``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..precision import accumulator

CHUNK_ELEMENTS = 2**18  # scores in memory at a time: 1 MB in float32, so that they stay in cache


def encode(q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute z and the log-sums over tokens."""
    exact = accumulator(k.dtype)
    z = q.new_zeros(len(ptr) - 1, *q.shape[1:], dtype=exact)
    lse = q.new_full(z.shape[:3], -torch.inf, dtype=exact)
    for meshes, rows in _groups(ptr):
        queries = _queries(q, meshes)
        keys, values = (_tokens(x, meshes, rows) for x in (k, v))
        if _has_flash(k):
            z[meshes], lse[meshes] = _flash(queries, keys, values, scale)
            continue
        largest = torch.full_like(lse[meshes], -torch.inf)
        total, numerator = torch.zeros_like(largest), torch.zeros_like(z[meshes])
        for chunk in _chunks(queries, keys.shape[2]):
            scores = _scores(queries, keys[:, :, chunk], scale)
            highest = torch.maximum(largest, scores.amax(-1))
            weights = scores.sub_(highest[..., None]).exp_()
            shrink = (largest - highest).exp_()
            total = total.mul_(shrink).add_(weights.sum(-1))
            numerator.mul_(shrink[..., None]).add_(weights @ values[:, :, chunk].to(exact))
            largest = highest
        z[meshes], lse[meshes] = numerator / total[..., None], largest + total.log()
    return z, lse


def decode(q: Tensor, k: Tensor, z: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute y and the log-sums over latents."""
    y, lse = k.new_empty(k.shape), k.new_empty(k.shape[:2], dtype=accumulator(k.dtype))
    for meshes, rows in _groups(ptr):
        queries, keys, latents = _queries(q, meshes), _tokens(k, meshes, rows), z[meshes]
        mixed, sums = _tokens(y, meshes, rows), _tokens(lse[..., None], meshes, rows)
        if _has_flash(k):
            out, logs = _flash(keys, queries, latents, scale)
            mixed.copy_(out)
            sums.copy_(logs[..., None])
            continue
        for chunk in _chunks(queries, keys.shape[2]):
            scores = _scores(queries, keys[:, :, chunk], scale).mT
            total = scores.logsumexp(-1, keepdim=True)
            mixed[:, :, chunk] = ((scores - total).exp_() @ latents).to(k.dtype)
            sums[:, :, chunk] = total
    return y, lse


def latent_gradient(
    grad_y: Tensor, q: Tensor, k: Tensor, lse_decode: Tensor, ptr: Tensor, scale: float
) -> Tensor:
    """Compute the gradient for z."""
    exact = accumulator(k.dtype)
    grad_z = q.new_zeros(len(ptr) - 1, *q.shape[1:], dtype=exact)
    for meshes, rows in _groups(ptr):
        queries = _queries(q, meshes).to(exact) * scale
        decode = _with_column(queries, 1.0).mT
        tokens = (k, grad_y, lse_decode[..., None])
        keys, received, logs = (_tokens(t, meshes, rows) for t in tokens)
        for chunk in _chunks(queries, keys.shape[2]):
            p = (_with_column(keys[:, :, chunk], -logs[:, :, chunk]) @ decode).exp_()
            grad_z[meshes] += p.mT @ received[:, :, chunk].to(exact)
    return grad_z


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
    """Compute the gradients for q, decode_q, k and v."""
    exact = accumulator(k.dtype)
    grad_q = torch.zeros(q.shape, dtype=exact, device=q.device)
    grad_decode_q = grad_q.new_empty(0) if decode_q is None else torch.zeros_like(grad_q)
    grad_k, grad_v = k.new_empty(k.shape), k.new_empty(k.shape)
    delta_encode = (grad_z * z).sum(-1, keepdim=True)
    delta_decode = (grad_y.to(exact) * y).sum(-1, keepdim=True)
    for meshes, rows in _groups(ptr):
        queries = _queries(q, meshes).to(exact) * scale
        second = queries if decode_q is None else _queries(decode_q, meshes).to(exact) * scale
        # An additional column of the factors subtracts the last term from each product:
        # S - lse = [q, -lse] [k, 1]^T, and z dy^T - dy . y = [z, -1] [dy, dy . y]^T.
        encode = _with_column(queries, -lse_encode[meshes, ..., None]).mT
        decode = _with_column(second, 1.0).mT
        latents = _with_column(z[meshes], -1.0).mT
        grad_latents = _with_column(grad_z[meshes], -delta_encode[meshes]).mT
        tokens = (k, v, grad_y, delta_decode, lse_decode[..., None], grad_k, grad_v)
        parts = [_tokens(t, meshes, rows) for t in tokens]
        for chunk in _chunks(queries, parts[0].shape[2]):
            keys, values, received, delta, logs, out_k, out_v = (t[:, :, chunk] for t in parts)
            e = (_with_column(keys, 1.0) @ encode).exp_()  # [B, H, n, M]
            p = (_with_column(keys, -logs) @ decode).exp_()
            out_v.copy_(e @ grad_z[meshes])
            e *= _with_column(values, 1.0) @ grad_latents
            if decode_q is None:
                e.addcmul_(p, _with_column(received, delta) @ latents)
                out_k.copy_(e @ queries)
            else:
                p *= _with_column(received, delta) @ latents
                out_k.copy_(e @ queries + p @ second)
                _accumulate(grad_decode_q, p.mT @ keys.to(exact), meshes)
            _accumulate(grad_q, e.mT @ keys.to(exact), meshes)
    grad_q, grad_decode_q = (t.mul_(scale).to(q.dtype) for t in (grad_q, grad_decode_q))
    return grad_q, grad_decode_q, grad_k, grad_v


def _with_column(x: Tensor, last: Tensor | float) -> Tensor:
    """Append a column to x [..., D], at least in float32."""
    x = x.to(accumulator(x.dtype))
    if not isinstance(last, Tensor):
        last = x.new_tensor(last).expand(*x.shape[:-1], 1)
    return torch.cat([x, last], -1)


def _groups(ptr: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield numbers and rows of consecutive meshes of one size; skip empty meshes."""
    ends = ptr.tolist()
    first = 0
    for mesh in range(1, len(ends)):
        size = ends[first + 1] - ends[first]
        if mesh == len(ends) - 1 or ends[mesh + 1] - ends[mesh] != size:
            if size:
                yield slice(first, mesh), slice(ends[first], ends[mesh])
            first = mesh


def _tokens(x: Tensor, meshes: slice, rows: slice) -> Tensor:
    """Return a view [B, H, N, D] of packed tokens [T, H, D] of meshes of one size."""
    return x[rows].unflatten(0, (meshes.stop - meshes.start, -1)).transpose(1, 2)


def _queries(q: Tensor, meshes: slice) -> Tensor:
    """Return q [B, H, M, D] of consecutive meshes."""
    return q.expand(meshes.stop - meshes.start, -1, -1, -1) if len(q) == 1 else q[meshes]


def _accumulate(grad: Tensor, part: Tensor, meshes: slice) -> None:
    """Add the parts of meshes [B, H, M, D] to a gradient of q."""
    if len(grad) == 1:
        grad += part.sum(0, keepdim=True)
    else:
        grad[meshes] += part


def _chunks(queries: Tensor, count: int) -> Iterator[slice]:
    """Yield slices of the tokens that are small enough for their scores."""
    size = max(32, CHUNK_ELEMENTS // queries[..., 0].numel())
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Compute S [B, H, M, n] of a chunk, at least in float32."""
    exact = accumulator(keys.dtype)
    return (queries.to(exact) * scale) @ keys.to(exact).mT


def _has_flash(k: Tensor) -> bool:
    """Return whether PyTorch's flash attention for CPUs takes tokens like ``k``."""
    return k.device.type == "cpu" and k.dtype in (torch.float32, torch.float64)


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute softmax(s q k^T) v [B, H, Q, D] and the logarithm of the softmax's sums [B, H, Q]."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, 0.0, False, scale=scale)
