"""Triton backends: why they may not take a call, and the names and sizes that they need.

Triton is imported when the first call is taken, so the package does not need it. With
``TRITON_INTERPRET=1`` in the environment, Triton executes the kernels in Python on the CPU, slowly:
this is how they are tested without a GPU.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

_OLDEST = (3, 6)  # products with 8 heads, less than older versions multiply
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a Triton backend cannot take a call, or None."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"it runs on NVIDIA GPUs, the tensors are on {device}"
    if dtype not in _DTYPES:
        return f"it computes in floating point of 16, 32 and 64 bits, not {dtype}"
    if (version := installed()) is None:
        return "triton is not installed (pip install triton)"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return f"it needs Triton {_OLDEST[0]}.{_OLDEST[1]}, not {version}"
    if interpreted:
        return None
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or higher"
    return None


@cache  # looked up in the file system, and asked for in every call of an operator
def installed() -> str | None:
    """Triton's version, if it is installed."""
    return metadata.version("triton") if find_spec("triton") else None


def power_of_two(n: int) -> int:
    """The smallest power of two that is not smaller than n."""
    return 1 << max(n - 1, 0).bit_length()


def in_triton(dtype: torch.dtype) -> Any:
    """Triton's name of a type."""
    from triton import language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))
