"""The ``cpu`` backend: calls of the library that installing matattn compiles from ``cpu.c``."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import compiled
from .reference import Moments

_NEGLIGIBLE = {torch.float64: 40.0, torch.float32: 20.0}  # radial functions below e^-40, e^-20
_REALS = {torch.float64: ctypes.c_double, torch.float32: ctypes.c_float}


def _structure(pointers: str, sizes: str = "", lengths: str = "", real: type | None = None) -> type:
    """Make a C structure with the named fields, in this order."""
    fields = [(name, ctypes.c_void_p) for name in pointers.split()]
    fields += [(name, ctypes.c_int64) for name in sizes.split()]  # type: ignore[misc]
    fields += [(name, real) for name in lengths.split()]  # type: ignore[misc]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


# As in cpu_kernel.h.
_PROBLEM = {
    dtype: _structure(
        "q k v a weight distance bias u u_weight table source row_ptr",
        "atoms neighbours heads dim count bias_heads channels functions origin",
        "spacing width reach",
        real,
    )
    for dtype, real in _REALS.items()
}
_GRADIENTS = _structure(
    "grad_y grad_lse grad_moments y moments "
    "grad_q grad_k grad_v grad_a grad_u grad_u_weight grad_distance grad_table"
)


_ABI = 3  # as in cpu.c
_ERRORS = {  # by return value of the C functions, the enum in cpu.c
    1: (MemoryError, "out of memory"),
    2: (ValueError, "an atom has no neighbour; add its own image at d = 0"),
    3: (ValueError, "source must lie in 0..N - 1 for N atoms"),
    4: (ValueError, "row_ptr must run from 0 to the number of neighbours"),
}


@cache
def _library() -> compiled.Library:
    """Load the library once."""
    return compiled.library(Path(__file__).parent)


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this backend cannot take a call, or None."""
    return compiled.refusal(_library(), _ABI, device, dtype)


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    moments: Moments | None,
    spacing: float,
    width: float,
) -> tuple[ctypes.Structure, list[Tensor]]:
    """Return the C structure of a call, and the tensors that it points into."""
    atoms, heads, dim = q.shape
    none = q.new_empty(0)
    more = moments or (none, none, none)
    given = (q, k, v, a, weight, distance, none if bias is None else bias, *more)
    reals = [t.to(q.dtype).contiguous() for t in given]
    channels, functions = moments.sizes if moments else (0, 0)
    integers = [t.to(torch.int64).contiguous() for t in (source, row_ptr)]
    bias_heads = 0 if bias is None else 1 if bias.dim() == 1 else heads
    reach = width * (2 * _NEGLIGIBLE[q.dtype]) ** 0.5
    sizes = [
        atoms, len(source), heads, dim, weight.shape[-1], bias_heads, channels, functions, 0,
    ]  # fmt: skip
    pointers = [t.data_ptr() or None for t in (*reals, *integers)]
    problem = _PROBLEM[q.dtype](*pointers, *sizes, spacing, width, reach)
    return problem, [*reals, *integers]


def _run(name: str, dtype: torch.dtype, *arguments: object) -> None:
    """Call a function of the library; raise the error that it returns."""
    function = getattr(_library(), f"{name}_{compiled.PRECISIONS[dtype]}")
    if state := function(*arguments):
        kind, reason = _ERRORS[state]
        raise kind(f"periodic_attention: {reason}")


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    moments: Moments | None,
    spacing: float,
    width: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute y [N, H, D], lse [N, H], mean basis c [N, H, K] and M [N, H, C, F], or nothing."""
    problem, kept = _problem(
        q, k, v, a, weight, distance, source, row_ptr, bias, moments, spacing, width
    )
    y, lse = torch.empty_like(kept[0]), torch.empty_like(kept[3])
    mean_basis = q.new_empty(*q.shape[:2], weight.shape[-1])
    m = q.new_empty(0) if moments is None else q.new_empty(*q.shape[:2], *moments.sizes)
    outputs = [ctypes.c_void_p(t.data_ptr()) for t in (y, lse, mean_basis, m)]
    threads = ctypes.c_int(torch.get_num_threads())
    _run("forward", q.dtype, ctypes.byref(problem), threads, *outputs)
    return y, lse, mean_basis, m


def backward(
    grad_y: Tensor,
    grad_lse: Tensor,
    grad_m: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    moments: Moments | None,
    y: Tensor,
    lse: Tensor,
    mean_basis: Tensor,
    m: Tensor,
    spacing: float,
    width: float,
    distance_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, ...]:
    """Compute the gradients of ``reference.backward`` (README.md sections 3 and 3a)."""
    problem, kept = _problem(
        q, k, v, a, weight, distance, source, row_ptr, bias, moments, spacing, width
    )
    inputs = [t.contiguous() for t in (grad_y, grad_lse, grad_m, y, m)]
    grads = [torch.empty_like(t) for t in kept[:4]]
    grad_u, grad_u_weight = torch.empty_like(kept[7]), torch.zeros_like(kept[8])
    grad_distance = torch.empty_like(kept[5]) if distance_grad else distance.new_empty(0)
    grad_table = torch.empty_like(kept[9]) if table_grad else distance.new_empty(0)
    outputs = (*grads, grad_u, grad_u_weight, grad_distance, grad_table)
    pointers = [t.data_ptr() or None for t in (*inputs, *outputs)]
    threads = ctypes.c_int(torch.get_num_threads())
    gradients = ctypes.byref(_GRADIENTS(*pointers))
    _run("backward", q.dtype, ctypes.byref(problem), gradients, threads)
    grad_weight = torch.empty_like(weight)
    for head in range(q.shape[1]):  # one by one: einsum would copy the mean basis
        torch.mm(inputs[0][:, head].t(), mean_basis[:, head], out=grad_weight[head])
    return *grads, grad_weight, grad_distance, grad_u, grad_u_weight, grad_table
