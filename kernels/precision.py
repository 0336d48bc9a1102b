"""The precision of sums in kernels."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums, also of those kept for the backward pass: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
