"""The implementations of low-rank routing, best first."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import triton_support
from ..dispatch import Backend, choose
from . import cpu, reference, torch_ops, triton_ops

BACKENDS = {
    "cpu": Backend(cpu, cpu.refuses),
    # Not chosen by itself as long as it has not run on a GPU.
    "triton": Backend(triton_ops, triton_support.refuses, automatic=False),
    "torch": Backend(torch_ops),
    "reference": Backend(reference, automatic=False),
}


def find(requested: str, k: Tensor) -> ModuleType:
    """The module that takes tokens like ``k``; raises BackendError when there is none."""
    return BACKENDS[choose("low_rank_routing", BACKENDS, requested, k.device, k.dtype)].module
