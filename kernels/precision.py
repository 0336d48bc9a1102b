"""The precision of sums in kernels."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums, also of those kept for the backward pass: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(like: torch.Tensor) -> torch.autocast:
    """Return a block without autocast: products of lengths and of statistics stay float32."""
    return torch.autocast(like.device.type, enabled=False)
