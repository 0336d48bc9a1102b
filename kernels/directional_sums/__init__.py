r"""Directional sums: values of an atom's neighbours, times functions of their directions.

``directional_sums`` is the public operator; README.md derives its gradients, ``reference.py``
states them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, choose
from . import cpu, reference, torch_ops

__all__ = ["BACKENDS", "directional_sums"]

BACKENDS = {
    "cpu": Backend(cpu, cpu.refuses),
    "torch": Backend(torch_ops),
    "reference": Backend(reference, automatic=False),
}


def directional_sums(
    radial: Tensor,
    values: Tensor,
    table: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""Sum what the neighbours of every atom say, times functions of their directions.

    .. math:: A_{i,cf} = \sum_{e \to i} r_{ec} \, v_{s_e, c} \, y_{ef}

    First derivatives by all three arrays are of the backend, second ones of the reference formula.

    Args:
        radial: r [E, C], what the distance of each of E neighbours makes of its values.
        values: v [M, C] of every atom.
        table: y [E, F], such as the spherical harmonics of the neighbour's direction.
        source: [E], the atom that each neighbour is, or is an image of, 0..M - 1.
        row_ptr: [N + 1]; the neighbours of atom i are ``row_ptr[i]:row_ptr[i + 1]``, or none.
        backend: "auto", or a key of ``BACKENDS``.

    Returns:
        A [N, C, F].

    Raises:
        BackendError: the backend is unknown or refuses the call.
        ValueError: shapes disagree, ``source`` names no atom or ``row_ptr`` is no list of rows.
    """
    edges, channels = len(source), values.shape[1]
    expected = {"radial": (radial, (edges, channels)), "table": (table, (edges, table.shape[-1]))}
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if not (channels and table.shape[-1]):
        raise ValueError("directional_sums needs at least one channel and one function")
    if row_ptr.dim() != 1 or not len(row_ptr):
        raise ValueError(f"row_ptr has shape {tuple(row_ptr.shape)}, expected (targets + 1,)")
    result: Tensor = torch.ops.matattn.directional_sums(
        radial, values, table, source, row_ptr, backend
    )
    return result


# Defined by schema for the same reason as periodic attention: custom_op imports TorchDynamo.
_INPUTS = "Tensor radial, Tensor values, Tensor table, Tensor source, Tensor row_ptr, str backend"
torch.library.define(
    "matattn::directional_sums",
    f"({_INPUTS}) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "matattn::directional_sums_backward",
    f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _find(backend, radial):
    name = choose("directional_sums", BACKENDS, backend, radial.device, radial.dtype)
    return BACKENDS[name].module


@torch.library.impl("matattn::directional_sums", ("cpu", "cuda"))
def _forward(radial, values, table, source, row_ptr, backend):
    return _find(backend, radial).forward(radial, values, table, source, row_ptr)


@torch.library.impl("matattn::directional_sums_backward", ("cpu", "cuda"))
def _backward(grad, radial, values, table, source, row_ptr, backend):
    return _find(backend, radial).backward(grad, radial, values, table, source, row_ptr)


@torch.library.register_fake("matattn::directional_sums")
def _fake_forward(radial, values, table, source, row_ptr, backend):
    return radial.new_empty(row_ptr.shape[0] - 1, radial.shape[1], table.shape[1])


@torch.library.register_fake("matattn::directional_sums_backward")
def _fake_backward(grad, radial, values, table, source, row_ptr, backend):
    return tuple(torch.empty_like(t) for t in (radial, values, table))


def _save_forward(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _forward_autograd(ctx, grad):
    grads = torch.ops.matattn.directional_sums_backward(grad, *ctx.saved_tensors, ctx.backend)
    return *grads, None, None, None


torch.library.register_autograd(
    "matattn::directional_sums", _forward_autograd, setup_context=_save_forward
)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])


def _backward_autograd(ctx, *grads_of_grads):
    """Return second derivatives, by the reference formula."""
    *tensors, source, row_ptr = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        grad, radial, values, table = leaves
        grads = reference.backward(grad, radial, values, table, source, row_ptr)
        second = torch.autograd.grad(grads, leaves, grads_of_grads)
    return *second, None, None, None


torch.library.register_autograd(
    "matattn::directional_sums_backward", _backward_autograd, setup_context=_save_backward
)

# Under autocast the sums run in float32, on inputs that are converted if they are shorter.
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("matattn::directional_sums", _device, torch.float32)
