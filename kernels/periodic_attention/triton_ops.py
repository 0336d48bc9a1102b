"""The ``triton`` backend: one kernel forward, two backward (README.md section 3c)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..precision import accumulator
from ..triton_support import in_triton, power_of_two
from .reference import Moments


def launch_options(
    kernel: str,
    dtype: torch.dtype,
    heads: int,
    dim: int,
    count: int,
    spacing: float,
    width: float,
    bias_heads: int,
    channels: int = 0,
    functions: int = 0,
    distance_grad: bool = False,
    table_grad: bool = False,
) -> dict[str, Any]:
    """Return compile-time constants of a kernel (see ``triton_kernels``) and its launch options.

    Sizes were chosen from the compiler's report (Triton 3.6 and 3.9: no spilled registers, several
    programs at a time on a multiprocessor; benchmarks/triton_compile_report.py), not from timings.
    The same sizes suit compute capabilities 8.0 and 9.0.
    """
    exact = accumulator(dtype)
    padded_dim, padded_count = power_of_two(dim), max(16, power_of_two(count))
    group = min(16, power_of_two(heads), max(1, 512 // exact.itemsize // padded_dim))
    row = exact.itemsize * max(group * padded_dim, padded_count)  # bytes of a neighbour's numbers
    options = {
        "H": heads,
        "D": dim,
        "HEADS": group,
        "DIM": padded_dim,
        "C": channels,
        "CHANNELS": max(power_of_two(max(channels, 1)), 16 // group),  # products are 16 wide
        "BLOCK": 16,
        "ACC": in_triton(exact),
        "num_warps": 4 if row <= 512 else 8,
        "num_stages": 3 if kernel == "forward" else 1,
    }
    if kernel != "backward_source":
        options |= {
            "K": count,
            "COUNT": padded_count,
            "F": functions,
            "FUNCTIONS": max(16, power_of_two(max(functions, 1))),
            "SPACING": spacing,
            "WIDTH": width,
            "BIAS_HEADS": bias_heads,
            "FACTOR": in_triton(dtype),
            "PRECISION": "ieee" if dtype == torch.float64 else "tf32x3",
        }
    if kernel == "backward_target":
        options |= {"DISTANCE_GRAD": distance_grad, "TABLE_GRAD": table_grad}
    return options


def _bias_heads(bias: Tensor | None) -> int:
    """Return the number of columns of the bias, 0 without one."""
    return 0 if bias is None else 1 if bias.dim() == 1 else bias.shape[1]


def _run(kernel: str, options: dict[str, Any], q: Tensor, *others: Tensor | None) -> None:
    """Launch a kernel of ``triton_kernels``: one program for each atom and group of heads."""
    from . import triton_kernels

    atoms, heads, _ = q.shape
    if atoms:
        arguments = [x if x is None else x.contiguous() for x in (q, *others)]
        grid = (atoms, -(-heads // options["HEADS"]))
        with torch.cuda.device_of(q):
            # The default of enable_fp_fusion (a * b + c rounded once) depends on Triton's version.
            getattr(triton_kernels, kernel)[grid](*arguments, **options, enable_fp_fusion=True)


def _check(source: Tensor, row_ptr: Tensor) -> None:
    """Raise ValueError for a wrong list; nowhere else does the host wait for the GPU."""
    if len(row_ptr) == 1:
        return
    bounds = [row_ptr.diff().min(), row_ptr[0], row_ptr[-1], source.min(), source.max()]
    shortest, begin, end, least, most = torch.stack(bounds).tolist()
    if shortest < 1:
        raise ValueError("periodic_attention: an atom has no neighbour; add its own image at d = 0")
    if begin != 0 or end != len(source):
        raise ValueError("periodic_attention: row_ptr must run from 0 to the number of neighbours")
    if least < 0 or most >= len(row_ptr) - 1:
        raise ValueError("periodic_attention: source must lie in 0..N - 1 for N atoms")


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
    _check(source, row_ptr)
    exact: dict[str, Any] = {"dtype": accumulator(q.dtype), "device": q.device}
    heads, dim, count = weight.shape
    attended = torch.empty(v.shape, **exact)
    lse = torch.empty(a.shape, **exact)
    mean_basis = torch.empty(*a.shape, count, **exact)
    u, u_weight, table = moments or (None, None, None)
    sizes = moments.sizes if moments else (0, 0)
    m = torch.empty((*a.shape, *sizes), **exact) if moments else None
    problem = (q.dtype, heads, dim, count, spacing, width, _bias_heads(bias), *sizes)
    _run(
        "forward", launch_options("forward", *problem),
        q, k, v, a, distance, source, row_ptr, bias, u, u_weight, table,
        attended, lse, mean_basis, m,
    )  # fmt: skip
    y = attended + torch.einsum("nhk,hdk->nhd", mean_basis, weight.to(mean_basis.dtype))
    return y.to(v.dtype), lse, mean_basis, q.new_empty(0) if m is None else m.to(v.dtype)


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
    atoms, edges = len(q), len(source)
    exact: dict[str, Any] = {"dtype": accumulator(q.dtype), "device": q.device}
    heads, dim, count = weight.shape
    channels, functions = moments.sizes if moments else (0, 0)
    problem = (q.dtype, heads, dim, count, spacing, width, _bias_heads(bias), channels, functions)
    options = launch_options("backward_target", *problem, distance_grad, table_grad)
    groups = -(-heads // options["HEADS"])
    received = grad_y.to(**exact)
    projected = torch.einsum("nhd,hdk->nhk", received, weight.to(**exact))
    p, delta = (torch.empty(edges, heads, **exact) for _ in range(2))
    grad_q, grad_k, grad_v, grad_a = (t.new_empty(t.shape) for t in (q, k, v, a))
    parts = torch.empty(edges, groups, **exact) if distance_grad else None
    u = u_weight = table = sent = grad_u = by_atom = table_parts = None
    if moments:
        u, u_weight, table = moments
        sent = torch.empty(edges, heads, channels, **exact)
        grad_u = torch.empty_like(u)
        by_atom = torch.empty(atoms, *u_weight.shape, **exact)
        table_parts = torch.empty(*table.shape, groups, **exact) if table_grad else None
    _run(
        "backward_target", options,
        q, k, v, a, distance, source, row_ptr, bias, u, u_weight, table, y, lse,
        m if moments else None, grad_y, grad_lse, grad_m if moments else None, projected,
        p, delta, sent, grad_q, grad_a, by_atom, parts, table_parts,
    )  # fmt: skip

    # The same list by source: the sort is stable, so that sums have one order. No step waits.
    atom = torch.arange(atoms + 1, device=q.device)
    target = torch.repeat_interleave(atom[:-1], row_ptr.diff(), output_size=edges)
    sources, by_source = source.sort(stable=True)
    source_ptr = torch.searchsorted(sources, atom)
    _run(
        "backward_source", launch_options("backward_source", *problem),
        q, grad_y, target, by_source, source_ptr, p, delta, sent, grad_k, grad_v, grad_u,
    )  # fmt: skip

    grad_weight = torch.einsum("nhd,nhk->hdk", received, mean_basis).to(weight.dtype).contiguous()
    none = [distance.new_empty(0) for _ in range(4)]
    grad_distance = none[0] if parts is None else parts.sum(1).to(distance.dtype)
    grads = grad_q, grad_k, grad_v, grad_a, grad_weight, grad_distance
    if u_weight is None or table is None or grad_u is None or by_atom is None:
        return *grads, *none[1:]
    grad_table = none[1] if table_parts is None else table_parts.sum(-1).to(table.dtype)
    return *grads, grad_u, by_atom.sum(0).to(u_weight.dtype), grad_table
