"""The implementations of low-rank routing, best first."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from torch import Tensor

from .. import triton_support
from ..dispatch import Backend, choose
from . import cpu, reference, torch_ops, triton_ops

BACKENDS = {
    "cpu": Backend(cpu, cpu.refuses),
    "triton": Backend(triton_ops, triton_support.refuses),
    "torch": Backend(torch_ops),
    "reference": Backend(reference, automatic=False),
}


def find(requested: str, k: Tensor) -> ModuleType:
    """Return the module that takes tokens like ``k``; raise BackendError if there is none."""
    table = BACKENDS
    if k.shape[-1] > triton_ops.LARGEST_DIM:
        table = table | {"triton": replace(table["triton"], automatic=False)}
    return table[choose("low_rank_routing", table, requested, k.device, k.dtype)].module
