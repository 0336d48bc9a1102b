"""The ``triton`` backend: Triton kernels on NVIDIA GPUs (README.md section 6).

Arguments and results are those of ``reference``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..dispatch import BackendError
from ..precision import accumulator
from ..triton_support import in_triton, power_of_two

PROGRAMS = 2048  # of a kernel that owns latents: some 16 for each multiprocessor
LARGEST_DIM = 64  # larger heads do not fit into the registers


def launch_options(
    kernel: str, dtype: torch.dtype, latents: int, dim: int, separate: bool = False
) -> dict[str, Any]:
    """Return compile-time constants of a kernel (see ``triton_kernels``) and its launch options.

    Sizes were chosen from the compiler's report (no spilled registers, several programs at a time
    on a multiprocessor; benchmarks/triton_compile_report.py), not from timings. Of two tiles that
    are multiplied, the one that a program keeps is spread over its warps. All warps hold the one
    that it walks over, so this has to be small.
    """
    gradients = kernel in ("query_gradients", "token_gradients")
    # E may be too small, and the gradient of z too large, for float16.
    factor = torch.float32 if gradients and dtype == torch.float16 else dtype
    padded = max(16, power_of_two(dim))  # tensor cores multiply 16 numbers at least
    row = padded * factor.itemsize
    large = gradients and row > 128
    kept = 32 if large or dtype == torch.float64 else 64
    budget = 4096 if not gradients else 1024 if separate else 2048  # bytes of a walked tile
    walked = min(32 if gradients else 64, max(16, budget // row))
    precision = {torch.float64: "ieee", torch.float32: "tf32x3"}.get(dtype, "tf32")
    if dtype == torch.float32 and (large or kernel == "token_gradients" and separate and row > 64):
        precision = "ieee"  # three products with TF32 need too many registers
    options = {
        "M": latents, "D": dim, "DIM": padded,
        "ACC": in_triton(accumulator(dtype)), "FACTOR": in_triton(factor), "PRECISION": precision,
        "num_warps": 4, "num_stages": 1 if gradients else 3,
    }  # fmt: skip
    if kernel in ("decode", "token_gradients"):
        return options | {"LATENTS": walked, "TOKENS": kept}
    options |= {"LATENTS": kept, "TOKENS": walked, "TILES": -(-latents // kept)}
    if kernel == "query_gradients":
        options["WHOLE"] = latents <= kept and not (separate and row > 64)
    return options


@lru_cache(maxsize=64)
def _items(ends: tuple[int, ...], size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pieces of meshes of ``size`` tokens or less: mesh, first token and end [items, 3].

    Those of mesh b are ``item_ptr[b]:item_ptr[b + 1]``; item_ptr is the second result. All layers
    of a network need the same ones, forward and backward.
    """
    ptr = torch.tensor(ends)
    counts = -(-ptr.diff() // size)
    item_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    mesh = torch.repeat_interleave(counts)
    begin = ptr[mesh] + (torch.arange(len(mesh)) - item_ptr[mesh]) * size
    items = torch.stack([mesh, begin, torch.minimum(begin + size, ptr[mesh + 1])], 1)
    return items.to(device), item_ptr.to(device)


def _options(kernel: str, q: Tensor, k: Tensor, scale: float, separate: bool) -> dict[str, Any]:
    """Return all compile-time constants of a kernel; raise BackendError for too large heads."""
    _, heads, latents, dim = q.shape
    if dim > LARGEST_DIM:
        raise BackendError(
            f"low_rank_routing: backend 'triton' takes heads of {LARGEST_DIM} numbers at most, not "
            f"{dim}; use 'torch'"
        )
    options = launch_options(kernel, k.dtype, latents, dim, separate)
    return options | {"H": heads, "SCALE": scale, "BATCHED": len(q) > 1}


def _chunks(ptr: Tensor, options: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the items of a kernel that owns latents: whole tiles, for some PROGRAMS programs."""
    ends = tuple(ptr.tolist())
    tile, programs = options["TOKENS"], options["H"] * options["TILES"]
    tiles = -(-ends[-1] * programs // (PROGRAMS * tile))
    return _items(ends, max(1, tiles) * tile, device)


def _run(kernel: str, programs: int, options: dict[str, Any], *arguments: Tensor | None) -> None:
    """Launch a kernel of ``triton_kernels``."""
    from . import triton_kernels

    if programs:
        tensors = [x if x is None else x.contiguous() for x in arguments]
        with torch.cuda.device_of(tensors[0]):
            # The default of enable_fp_fusion (a * b + c rounded once) depends on Triton's version.
            getattr(triton_kernels, kernel)[programs,](*tensors, **options, enable_fp_fusion=True)


def _add(parts: Tensor, item_ptr: Tensor, factor: float, result: Tensor) -> Tensor:
    """Sum parts [items, ...] over the items of every row of ``result``, times ``factor``."""
    size = result[0].numel()
    options = {"FACTOR": factor, "SIZE": size, "BLOCK": 256, "ITEMS": 16, "num_warps": 4}
    options["ACC"] = in_triton(parts.dtype)
    _run("add", len(result) * -(-size // 256), options, parts, item_ptr, result)
    return result


def encode(q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute z and the log-sums over tokens."""
    exact: dict[str, Any] = {"dtype": accumulator(k.dtype), "device": k.device}
    options = _options("encode", q, k, scale, False)
    items, item_ptr = _chunks(ptr, options, k.device)
    _, heads, latents, dim = q.shape
    part_z = torch.empty(len(items), heads, latents, dim, **exact)
    part_lse = torch.empty(part_z.shape[:3], **exact)
    programs = len(items) * heads * options["TILES"]
    _run("encode", programs, options, q, k, v, items, part_z, part_lse)
    z = torch.empty(len(ptr) - 1, heads, latents, dim, **exact)
    lse = torch.empty(z.shape[:3], **exact)
    merge = {"HM": heads * latents, "ROWS": 16, "ITEMS": 8, "num_warps": 4}
    merge |= {name: options[name] for name in ("D", "DIM", "ACC")}
    programs = len(z) * -(-heads * latents // 16)
    _run("merge", programs, merge, part_z, part_lse, item_ptr, z, lse)
    return z, lse


def decode(q: Tensor, k: Tensor, z: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute y and the log-sums over latents."""
    options = _options("decode", q, k, scale, False)
    items, _ = _items(tuple(ptr.tolist()), options["TOKENS"], k.device)
    y = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    lse = torch.empty(k.shape[:2], dtype=z.dtype, device=k.device)
    _run("decode", len(items) * k.shape[1], options, q, k, z, items, y, lse)
    return y, lse


def latent_gradient(
    grad_y: Tensor, q: Tensor, k: Tensor, lse_decode: Tensor, ptr: Tensor, scale: float
) -> Tensor:
    """Compute the gradient for z."""
    exact: dict[str, Any] = {"dtype": accumulator(k.dtype), "device": k.device}
    options = _options("latent_gradient", q, k, scale, False)
    items, item_ptr = _chunks(ptr, options, k.device)
    parts = torch.empty(len(items), *q.shape[1:], **exact)
    programs = len(items) * k.shape[1] * options["TILES"]
    _run("latent_gradient", programs, options, grad_y, q, k, lse_decode, items, parts)
    return _add(parts, item_ptr, 1.0, torch.empty(len(ptr) - 1, *q.shape[1:], **exact))


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
    separate = decode_q is not None
    tensors = (grad_y, q, decode_q, k, v, y, z, grad_z, lse_encode, lse_decode)
    grad_k, grad_v = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (k, v))

    options = _options("query_gradients", q, k, scale, separate) | {"SEPARATE": separate}
    items, item_ptr = _chunks(ptr, options, k.device)
    shape = (len(items), *q.shape[1:])
    parts = [torch.empty(shape, dtype=z.dtype, device=k.device) for _ in range(1 + separate)]
    programs = len(items) * k.shape[1] * options["TILES"]
    results = (parts[0], parts[1] if separate else None, grad_k, grad_v)
    _run("query_gradients", programs, options, *tensors, items, *results)
    if len(q) == 1:
        item_ptr = item_ptr[:: len(item_ptr) - 1]  # the items of all meshes
    grads_q = [
        _add(part, item_ptr, scale, torch.empty(q.shape, dtype=q.dtype, device=q.device))
        for part in parts
    ]

    if not options["WHOLE"]:
        options = _options("token_gradients", q, k, scale, separate) | {"SEPARATE": separate}
        items, _ = _items(tuple(ptr.tolist()), options["TOKENS"], k.device)
        programs = len(items) * k.shape[1]
        _run("token_gradients", programs, options, *tensors, items, grad_k, grad_v)
    return grads_q[0], grads_q[1] if separate else q.new_empty(0), grad_k, grad_v
