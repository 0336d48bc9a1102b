"""The ``cpu`` backend: calls of the library that installing matattn compiles from ``cpu.c``."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import compiled


class _Problem(ctypes.Structure):
    """As in cpu_kernel.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in "radial values table source row_ptr".split()),
        *((name, ctypes.c_int64) for name in "targets atoms edges channels functions".split()),
    ]


_ABI = 1  # as in cpu.c
_ERRORS = {  # by return value of the C functions, the enum in cpu.c
    1: (MemoryError, "out of memory"),
    2: (ValueError, "source must lie in 0..N - 1 for N atoms"),
    3: (ValueError, "row_ptr must run from 0 to the number of neighbours"),
}


@cache
def _library() -> compiled.Library:
    """Load the library once."""
    return compiled.library(Path(__file__).parent)


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this backend cannot take a call, or None."""
    return compiled.refusal(_library(), _ABI, device, dtype)


def forward(
    radial: Tensor, values: Tensor, table: Tensor, source: Tensor, row_ptr: Tensor
) -> Tensor:
    """Compute A [N, C, F]."""
    problem, kept = _problem(radial, values, table, source, row_ptr)
    sums = radial.new_empty(len(row_ptr) - 1, values.shape[1], table.shape[1])
    _run("forward", problem, kept[0].dtype, sums)
    return sums


def backward(
    grad: Tensor,
    radial: Tensor,
    values: Tensor,
    table: Tensor,
    source: Tensor,
    row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients by r, v and y from that by A."""
    problem, kept = _problem(radial, values, table, source, row_ptr)
    by_radial, by_value, by_table = (torch.empty_like(t) for t in kept[:3])
    slope = grad.to(radial.dtype).contiguous()
    _run("backward", problem, radial.dtype, slope, by_radial, by_value, by_table)
    return by_radial, by_value, by_table


def _problem(
    radial: Tensor, values: Tensor, table: Tensor, source: Tensor, row_ptr: Tensor
) -> tuple[_Problem, list[Tensor]]:
    """Return the C structure of a call, and the tensors that it points into."""
    kept = [t.to(radial.dtype).contiguous() for t in (radial, values, table)]
    kept += [t.to(torch.int64).contiguous() for t in (source, row_ptr)]
    sizes = len(row_ptr) - 1, len(values), len(source), values.shape[1], table.shape[1]
    return _Problem(*(t.data_ptr() or None for t in kept), *sizes), kept


def _run(name: str, problem: _Problem, dtype: torch.dtype, *tensors: Tensor) -> None:
    """Call a function of the library; raise the error that it returns."""
    function = getattr(_library(), f"{name}_{compiled.PRECISIONS[dtype]}")
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    threads = ctypes.c_int(torch.get_num_threads())
    if state := function(ctypes.byref(problem), threads, *pointers):
        kind, reason = _ERRORS[state]
        raise kind(f"directional_sums: {reason}")
