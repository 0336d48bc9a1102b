"""Triton backends: the reasons why they cannot take a call, and the names and sizes they need.

Triton is imported with the first call, so the package does not need it. With
``TRITON_INTERPRET=1`` in the environment, Triton executes the kernels in Python on the CPU, slowly;
tests without a GPU run them in this way.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

_OLDEST = (3, 6)  # older versions cannot multiply matrices as small as those of 8 heads
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a Triton backend cannot take a call, or None."""
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


@cache  # a look-up in the file system, needed in every call of an operator
def installed() -> str | None:
    """Return Triton's version, or None if it is not installed."""
    return metadata.version("triton") if find_spec("triton") else None


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is not smaller than n."""
    return 1 << max(n - 1, 0).bit_length()


def in_triton(dtype: torch.dtype) -> Any:
    """Return Triton's name of a type."""
    from triton import language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))
