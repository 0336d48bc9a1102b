"""In which precision kernels add up."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and of what a backward pass needs of them: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
