"""The implementations of low-rank routing, best first."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..dispatch import Backend, choose
from . import reference, torch_ops, triton_ops

BACKENDS = {
    # Never run on a GPU, so only on request.
    "triton": Backend(triton_ops, triton_ops.refuses, automatic=False),
    "torch": Backend(torch_ops),
    "reference": Backend(reference, automatic=False),
}


def find(requested: str, k: Tensor) -> ModuleType:
    """The module that takes tokens like ``k``; raises BackendError when there is none."""
    return BACKENDS[choose("low_rank_routing", BACKENDS, requested, k.device, k.dtype)].module
