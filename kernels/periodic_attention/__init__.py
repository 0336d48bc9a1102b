r"""Infinitely connected attention over crystals (Crystalformer, arXiv 2403.11686, eq. 3-10).

``periodic_attention`` is the public operator; README.md derives it, ``reference.py`` states it.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from .. import triton_support
from ..dispatch import Backend, choose
from ..precision import accumulator
from . import cpu, reference, torch_ops, triton_ops
from .reference import Moments

__all__ = ["periodic_attention", "periodic_moments", "cutoff_for_tolerance", "weight_beyond"]

BACKENDS = {
    "cpu": Backend(cpu, cpu.refuses),
    "triton": Backend(triton_ops, triton_support.refuses),
    "torch": Backend(torch_ops),
    "reference": Backend(reference, automatic=False),
}


def cutoff_for_tolerance(sigma: float, tolerance: float, logit_spread: float = 0.0) -> float:
    r"""Return the distance in Å beyond which every image weighs less than ``tolerance``.

    The weight is relative to the atom's own image at d = 0, which is always in the sum:

    .. math::
        P_{ijn} / P_{ii0} = e^{(q_i \cdot k_j - q_i \cdot k_i) / \sqrt{D}} e^{-d^2 / 2 \sigma^2}

    ``logit_spread`` is the largest exponent of the first factor, ``sigma`` the largest width in Å.
    """
    return sigma * math.sqrt(2 * (logit_spread - math.log(tolerance)))


def weight_beyond(sigma: float, cutoff: float, density: float, logit_spread: float = 0.0) -> float:
    r"""Return the largest possible share of an atom's attention to images beyond ``cutoff`` Å.

    .. math::
        \epsilon = e^{\Delta} \, 4 \pi \rho \int_{r_c}^\infty r^2 e^{-r^2 / 2 \sigma^2} dr

    with ``density`` :math:`\rho` in atoms/Å^3 (about 0.05 in oxides, 0.08 in metals, 0.18 in
    diamond) and ``logit_spread`` :math:`\Delta` as in ``cutoff_for_tolerance``. Leaving them out
    changes y by at most :math:`2 \epsilon` times the largest value :math:`|v_j + W b(d)|`.
    """
    x = cutoff / sigma
    tail = x * math.exp(-x * x / 2) + math.sqrt(math.pi / 2) * math.erfc(x / math.sqrt(2))
    return math.exp(logit_spread) * 4 * math.pi * density * sigma**3 * tail


def periodic_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    *,
    spacing: float,
    width: float,
    bias: Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Compute the attention of every atom to all periodic images in its neighbour list.

    .. math::
        y_i = \frac{1}{Z_i} \sum_{(j, n)} \exp(q_i \cdot k_j / \sqrt{D} + a_i d_{ijn}^2 + c_{ijn})
              (v_j + W b(d_{ijn}))

    with Gaussians :math:`b_k(d) = \exp(-(d - k \Delta)^2 / 2 s^2)`, k = 1..K. One softmax runs over
    all images of all atoms j. Gradients for q, k, v, a, weight and distance are exact, and so are
    their second derivatives.

    Args:
        q: queries [N, H, D] of all atoms of a batch (D per head, unscaled).
        k: keys [N, H, D].
        v: values [N, H, D].
        a: :math:`-1 / (2 \sigma_i^2)` [N, H], 1/Å^2.
        weight: projection W [H, D, K] of the radial functions; K = 0 leaves them out.
        distance: :math:`d_{ijn}` [E], Å, sorted by the target atom i.
        source: atom j of each neighbour [E], int64.
        row_ptr: neighbours of atom i are ``row_ptr[i]:row_ptr[i + 1]`` [N + 1], int64. Each atom
            has at least one (its own image at d = 0).
        spacing: :math:`\Delta` of the Gaussians, Å.
        width: s of the Gaussians, Å.
        bias: constant :math:`c_{ijn}` [E] or [E, H] added to the logits, not differentiated: the
            logarithm of a multiplicity, or -inf where a head does not see an image.
        return_lse: also return :math:`\log Z_i` [N, H], differentiable.
        backend: "auto", "cpu", "triton", "torch" or "reference" (float64 sums).

    Returns:
        y [N, H, D], or (y, lse).

    Raises:
        BackendError: the backend is unknown or refuses the call.
        ValueError: shapes disagree, an atom has an empty neighbour list, or a length is not
            above 0.
    """
    inputs = (q, k, v, a, weight, distance, source, row_ptr, bias, None, None, None)
    y, lse, *_ = _call(inputs, spacing, width, backend)
    return (y, lse) if return_lse else y


def periodic_moments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    u: Tensor,
    u_weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    table: Tensor,
    *,
    spacing: float,
    width: float,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Compute ``periodic_attention`` and, with the same weights P, moments of any functions.

    .. math::
        M_{icf} = \sum_{(j, n)} P_{ijn} (u_{jc} + (U b(d_{ijn}))_c) f_{ijn}

    With spherical harmonics of the direction of the image in the table, the products of M that are
    invariant under rotation know angles (``matattn.models.attention_moments``). All gradients are
    exact, that of the table too, and so are their second derivatives.

    ``u`` [N, H, C] are values of C channels a head, ``u_weight`` is U [H, C, K] and ``table`` holds
    :math:`f_{ijn}` [E, F] of every image. All other arguments, and the errors, are those of
    ``periodic_attention``. Returns y [N, H, D] and M [N, H, C, F].
    """
    inputs = (q, k, v, a, weight, distance, source, row_ptr, bias, u, u_weight, table)
    y, _, _, moments = _call(inputs, spacing, width, backend)
    return y, moments


def _call(
    inputs: tuple[Tensor | None, ...], spacing: float, width: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check inputs in the order of ``_INPUTS``, and compute.

    Raises ValueError where shapes disagree or a length is not above 0.
    """
    q, k, v, a, weight, distance, source, row_ptr, bias, u, u_weight, table = cast(Any, inputs)
    atoms, heads, dim = q.shape
    expected = {
        "k": (k, (atoms, heads, dim)),
        "v": (v, (atoms, heads, dim)),
        "a": (a, (atoms, heads)),
        "weight": (weight, (heads, dim, weight.shape[-1])),
        "source": (source, tuple(distance.shape)),
        "row_ptr": (row_ptr, (atoms + 1,)),
    }
    if u is not None:
        expected |= {
            "u": (u, (atoms, heads, u.shape[-1])),
            "u_weight": (u_weight, (heads, u.shape[-1], weight.shape[-1])),
            "table": (table, (len(source), table.shape[-1])),
        }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"periodic_attention: {name} has shape {tuple(tensor.shape)}, expected {shape}"
            )
    if bias is not None and tuple(bias.shape) not in ((len(source),), (len(source), heads)):
        raise ValueError(
            f"periodic_attention: bias has shape {tuple(bias.shape)}, expected {(len(source),)} or "
            f"{(len(source), heads)}"
        )
    for name, length in (("spacing", spacing), ("width", width)):
        if not 0 < length < math.inf:
            raise ValueError(f"periodic_attention: {name}={length} Å; expected a length above 0")
    return torch.ops.matattn.periodic_attention(*inputs, spacing, width, backend)


# The operators are defined by their schema, not with ``torch.library.custom_op``, whose first call
# imports TorchDynamo and would add 1.5 seconds to every prediction.
_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor a, Tensor weight, Tensor distance, Tensor source, "
    "Tensor row_ptr, Tensor? bias, Tensor? u, Tensor? u_weight, Tensor? table"
)
_NUMBER = 12  # of these
torch.library.define(
    "matattn::periodic_attention",
    f"({_INPUTS}, float spacing, float width, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "matattn::periodic_attention_backward",
    f"(Tensor grad_y, Tensor grad_lse, Tensor grad_m, {_INPUTS}, Tensor y, Tensor lse, "
    "Tensor mean_basis, Tensor m, float spacing, float width, str backend, bool distance_grad, "
    f"bool table_grad) -> ({', '.join(['Tensor'] * 9)})",
    tags=torch.Tag.pt2_compliant_tag,
)


def _moments(u: Tensor | None, u_weight: Tensor | None, table: Tensor | None) -> Moments | None:
    if u is None or u_weight is None or table is None:
        return None
    return Moments(u, u_weight, table)


@torch.library.impl("matattn::periodic_attention", ("cpu", "cuda"))
def _forward(*inputs):
    *tensors, spacing, width, backend = inputs
    q = tensors[0]
    name = choose("periodic_attention", BACKENDS, backend, q.device, q.dtype)
    if not len(q):  # no atoms: the results have shapes and types only
        return _fake_forward(*tensors, spacing, width, name)
    run = BACKENDS[name].module.forward
    return run(*tensors[:9], _moments(*tensors[9:]), spacing, width)


@torch.library.impl("matattn::periodic_attention_backward", ("cpu", "cuda"))
def _backward(grad_y, grad_lse, grad_m, *inputs):
    tensors, saved = inputs[:_NUMBER], inputs[_NUMBER : _NUMBER + 4]
    spacing, width, backend, distance_grad, table_grad = inputs[_NUMBER + 4 :]
    q = tensors[0]
    name = choose("periodic_attention", BACKENDS, backend, q.device, q.dtype)
    if not len(q):
        return tuple(torch.zeros_like(t) for t in _gradients(tensors, distance_grad, table_grad))
    return BACKENDS[name].module.backward(
        grad_y, grad_lse, grad_m, *tensors[:9], _moments(*tensors[9:]), *saved,
        spacing, width, distance_grad, table_grad,
    )  # fmt: skip


@torch.library.register_fake("matattn::periodic_attention")
def _fake_forward(*inputs):
    q, _, v, _, weight, *_, u, _, table, _, _, backend = inputs
    atoms, heads, _ = q.shape
    name = choose("periodic_attention", BACKENDS, backend, q.device, q.dtype)
    # With 16-bit inputs, only "triton" keeps the tensors of its backward pass in float32.
    dtype = accumulator(q.dtype) if name == "triton" else q.dtype
    mean_basis = q.new_empty(atoms, heads, weight.shape[-1], dtype=dtype)
    m = q.new_empty(0) if u is None else q.new_empty(*u.shape, table.shape[1])
    return torch.empty_like(v), q.new_empty(atoms, heads, dtype=dtype), mean_basis, m


@torch.library.register_fake("matattn::periodic_attention_backward")
def _fake_backward(grad_y, grad_lse, grad_m, *inputs):
    return tuple(torch.empty_like(t) for t in _gradients(inputs[:_NUMBER], inputs[-2], inputs[-1]))


def _gradients(tensors, distance_grad, table_grad):
    """Return what the gradients look like: empty where not asked for."""
    q, k, v, a, weight, distance, *_, u, u_weight, table = tensors
    none = q.new_empty(0)
    with_moments = (none, none, none) if u is None else (u, u_weight, table if table_grad else none)
    return q, k, v, a, weight, distance if distance_grad else none, *with_moments


def _save_forward(ctx, inputs, output):
    *tensors, ctx.spacing, ctx.width, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # the mean basis, the largest output, never has one


def _forward_autograd(ctx, grad_y, grad_lse, _grad_mean_basis, grad_m):
    *tensors, y, lse, mean_basis, m = ctx.saved_tensors
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y.contiguous()
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    grad_m = torch.zeros_like(m) if grad_m is None else grad_m.contiguous()
    distance_grad, table_grad = ctx.needs_input_grad[5], ctx.needs_input_grad[11]
    grads = torch.ops.matattn.periodic_attention_backward(
        grad_y, grad_lse, grad_m, *tensors, y, lse, mean_basis, m, ctx.spacing, ctx.width,
        ctx.backend, distance_grad, table_grad,
    )  # fmt: skip
    with_moments = grads[6:8] if tensors[9] is not None else (None, None)
    return (
        *grads[:5], grads[5] if distance_grad else None, None, None, None,
        *with_moments, grads[8] if table_grad else None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd(
    "matattn::periodic_attention", _forward_autograd, setup_context=_save_forward
)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: 3 + _NUMBER])
    ctx.spacing, ctx.width, _, ctx.distance_grad, ctx.table_grad = inputs[-5:]


def _backward_autograd(ctx, *grads_of_grads):
    """Return second derivatives, by the reference formula, so that losses on forces can be trained.

    y, lse, the mean basis and M are functions of the other inputs. The derivatives of those include
    their share, so they have none themselves.
    """
    grad_y, grad_lse, grad_m, *tensors = ctx.saved_tensors
    source, row_ptr, bias = tensors[6:9]
    of_moments = tensors[9:] if tensors[9] is not None else []
    with torch.enable_grad():
        grad_y, grad_lse, grad_m, *leaves = inputs = [
            t.detach().requires_grad_()
            for t in (grad_y, grad_lse, grad_m, *tensors[:6], *of_moments)
        ]
        q, k, v, a, weight, distance = leaves[:6]
        outputs = reference.neighbor_attention(
            q, k, v, a, weight, distance, source, row_ptr, bias, ctx.spacing, ctx.width,
            Moments(*leaves[6:]) if of_moments else None,
        )  # fmt: skip
        incoming = (grad_y, grad_lse, grad_m)[: len(outputs)]
        grads = torch.autograd.grad(outputs, leaves, incoming, create_graph=True)
        used = [n for n in range(len(leaves)) if _asked(n, ctx.distance_grad, ctx.table_grad)]
        second = torch.autograd.grad(
            [grads[n] for n in used], inputs, [grads_of_grads[n] for n in used], allow_unused=True
        )
    with_moments = second[9:] or (None, None, None)
    return *second[:9], None, None, None, *with_moments, *(None,) * 9


def _asked(number, distance_grad, table_grad):
    """Return whether an input's gradient was computed, by its place among the real ones."""
    return (number != 5 or distance_grad) and (number != 8 or table_grad)


torch.library.register_autograd(
    "matattn::periodic_attention_backward", _backward_autograd, setup_context=_save_backward
)

# Under autocast the sums run in float32, on inputs that are converted if they are shorter.
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("matattn::periodic_attention", _device, torch.float32)
