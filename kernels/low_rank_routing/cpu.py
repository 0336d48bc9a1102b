"""The ``cpu`` backend: calls of the library that installing matattn compiles from ``cpu.c``.

Arguments and results are those of ``reference``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import compiled


class _Tokens(ctypes.Structure):
    """A view [T, H, D] whose last dimension is contiguous."""

    _fields_ = [("data", ctypes.c_void_p), ("token", ctypes.c_int64), ("head", ctypes.c_int64)]


_TOKENS = "k v y grad_y grad_k grad_v".split()
_CONTIGUOUS = (
    "q",
    "decode_q",
    "z",
    "grad_z",
    "lse_encode",
    "lse_decode",
    "grad_q",
    "grad_decode_q",
)


class _Call(ctypes.Structure):
    """The structure ``call`` of cpu.c."""

    _fields_ = [
        ("ptr", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in "meshes heads latents dim queries".split()),
        ("scale", ctypes.c_double),
        *((name, _Tokens) for name in _TOKENS),
        *((name, ctypes.c_void_p) for name in _CONTIGUOUS),
        *((name, ctypes.c_void_p) for name in ("list", "chunks", "first_chunk")),  # C fills them
    ]


_ABI = 1  # as in cpu.c
_ALONE = 2**19  # products of q and k: a tenth of a millisecond, too short for other threads


@cache
def _library() -> compiled.Library:
    """Load the library once."""
    return compiled.library(Path(__file__).parent)


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this backend cannot take a call, or None."""
    return compiled.refusal(_library(), _ABI, device, dtype)


def _run(name: str, ptr: Tensor, scale: float, **tensors: Tensor | None) -> None:
    """Call a function of the library; outputs are among ``tensors``, contiguous."""
    dtype, kept = tensors["k"].dtype, {}  # type: ignore[union-attr]
    for key, tensor in tensors.items():
        if tensor is None:
            continue
        tensor = tensor.to(dtype)
        whole = key in _TOKENS and tensor.stride(-1) == 1
        kept[key] = tensor if whole else tensor.contiguous()
    ptr = ptr.to(torch.int64).contiguous()
    q = kept["q"]
    call = _Call(ptr.data_ptr(), len(ptr) - 1, *q.shape[1:], len(q), scale)
    for key, tensor in kept.items():
        data = tensor.data_ptr()
        setattr(call, key, _Tokens(data, *tensor.stride()[:2]) if key in _TOKENS else data)
    function = getattr(_library(), f"{name}_{compiled.PRECISIONS[dtype]}")
    threads = torch.get_num_threads() if kept["k"].numel() * q.shape[2] > _ALONE else 1
    if function(ctypes.byref(call), ctypes.c_int(threads)):
        raise MemoryError("low_rank_routing: out of memory")


def encode(q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute z and the log-sums over tokens."""
    z = k.new_empty(len(ptr) - 1, *q.shape[1:])
    lse = k.new_empty(z.shape[:3])
    _run("encode", ptr, scale, q=q, k=k, v=v, z=z, lse_encode=lse)
    return z, lse


def decode(q: Tensor, k: Tensor, z: Tensor, ptr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute y and the log-sums over latents."""
    y, lse = k.new_empty(k.shape), k.new_empty(k.shape[:2])
    _run("decode", ptr, scale, q=q, k=k, z=z, y=y, lse_decode=lse)
    return y, lse


def latent_gradient(
    grad_y: Tensor, q: Tensor, k: Tensor, lse_decode: Tensor, ptr: Tensor, scale: float
) -> Tensor:
    """Compute the gradient for z."""
    grad_z = k.new_empty(len(ptr) - 1, *q.shape[1:])
    tensors = {"grad_y": grad_y, "q": q, "k": k, "lse_decode": lse_decode, "grad_z": grad_z}
    _run("latent_gradient", ptr, scale, **tensors)
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
    grad_q = k.new_empty(q.shape)
    grad_decode_q = k.new_empty(0 if decode_q is None else q.shape)
    grad_k, grad_v = k.new_empty(k.shape), k.new_empty(k.shape)
    _run(
        "token_gradients", ptr, scale, grad_y=grad_y, q=q, decode_q=decode_q, k=k, v=v, y=y, z=z,
        grad_z=grad_z, lse_encode=lse_encode, lse_decode=lse_decode, grad_q=grad_q,
        grad_decode_q=grad_decode_q, grad_k=grad_k, grad_v=grad_v,
    )  # fmt: skip
    return grad_q.to(q.dtype), grad_decode_q.to(q.dtype), grad_k, grad_v
