"""The ``torch`` backend: vectorised PyTorch on any device, no compiler needed.

The pair tensor [E, H, D] is never formed (deferred projection, README.md section 2): with
:math:`c_i = \\sum P_{ijn} b(d_{ijn})` the output is :math:`y_i = \\sum_j A_{ij} v_j + W c_i`, where
:math:`A_{ij} = \\sum_n P_{ijn}`. Work on images (E of them) is two batched matrix products with the
table of radial functions per head group; work with q, k and v happens once per pair of atoms
(i, j).

Everything that depends on geometry alone (the ``Plan``: table of radial functions, padded groups of
atoms with similar numbers of neighbours) is the same for all layers and for the backward pass, so
the last plan is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import radial_basis

_UNDERFLOW = 80.0  # e^-80 is zero for our sums; exponents far below take a slow path on CPUs


@dataclass(frozen=True)
class Group:
    """Atoms with similar numbers of neighbours, padded to the largest of them (M)."""

    atoms: Tensor  # [n] target atoms
    edge: Tensor  # [n * M] position in the flat list; padding repeats an atom's last neighbour
    pairs: slice  # its pairs (i, j) in the plan's list
    pair: Tensor  # [n * M] pair of each neighbour, counted from pairs.start
    runs: Tensor  # [number of pairs + 1] where each pair's neighbours begin in [n * M]
    distance: Tensor  # [n, M] Å
    squared: Tensor  # [n, M] Å^2
    bias: Tensor  # [1 or H, n, M], -inf in the padding
    basis: Tensor  # [n, M, K'], the first K' <= K radial functions: the others are zero


@dataclass(frozen=True)
class Plan:
    """What the operator needs of the geometry of one batch."""

    made_from: tuple  # copies of the arguments, to see whether they are still the same
    target: Tensor  # [P] atoms i of the distinct pairs (i, j) in the list
    source: Tensor  # [P] atoms j
    groups: list[Group]


_last_plan: Plan | None = None


def _plan(*arguments: Any) -> Plan:
    """The plan of this geometry; the last one serves as long as its arguments have equal content.

    Comparing them costs little beside the work on them, and cannot be fooled by changes in place.
    """
    global _last_plan
    plan = _last_plan
    if plan is None or not _same(plan.made_from, arguments):
        copies = tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments)
        _last_plan = plan = _make_plan(copies, *arguments)
    return plan


def _same(old: tuple, new: tuple) -> bool:
    for a, b in zip(old, new, strict=True):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            if a is not b and (isinstance(a, Tensor) or isinstance(b, Tensor) or a != b):
                return False
        elif a.device != b.device or a.dtype != b.dtype or not torch.equal(a, b):
            return False
    return True


def _make_plan(
    made_from: tuple,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    spacing: float,
    width: float,
    count: int,
) -> Plan:
    counts = row_ptr.diff()
    atoms = counts.numel()
    target = torch.repeat_interleave(torch.arange(atoms, device=distance.device), counts)
    pair_of_edge = target * atoms + source
    if bias is not None and bias.dim() == 1:
        bias = bias[:, None]

    reach = float(distance.max()) + width * math.sqrt(2 * _UNDERFLOW) if len(distance) else 0.0
    count = min(count, int(reach / spacing))  # radial functions further out are zero everywhere
    sizes, order = counts.sort(descending=True, stable=True)
    groups: list[Group] = []
    pair_lists: list[Tensor] = []
    done = 0
    for start, stop in _similar_sizes(sizes.tolist()):
        member = order[start:stop]
        first, size = row_ptr[member, None], counts[member, None]
        column = torch.arange(int(sizes[start]), device=distance.device)
        edge = (first + torch.minimum(column, size - 1)).flatten()
        shape = (stop - start, column.numel())
        d = distance[edge].view(shape)
        pairs, pair, lengths = torch.unique_consecutive(
            pair_of_edge[edge], return_inverse=True, return_counts=True
        )
        pair_lists.append(pairs)
        runs = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        mask = torch.zeros((), dtype=distance.dtype, device=distance.device)
        if bias is not None:
            mask = bias[edge].t().reshape(-1, *shape).to(distance)
        groups.append(
            Group(
                atoms=member,
                edge=edge,
                pairs=slice(done, done + len(pairs)),
                pair=pair,
                runs=runs,
                distance=d,
                squared=d.square(),
                bias=torch.where(column < size, mask, -math.inf).view(-1, *shape),
                basis=_radial_table(d, spacing, width, count),
            )
        )
        done += len(pairs)
    pairs = torch.cat(pair_lists) if pair_lists else target
    return Plan(made_from, pairs // atoms, pairs % atoms, groups)


def _similar_sizes(sizes: list[int]) -> list[tuple[int, int]]:
    """Ranges of a descending list that are padded together.

    A range ends where its padding would exceed both 2,000 neighbours (what another range costs in
    calls) and a tenth of its area.
    """
    if sizes and sizes[-1] == 0:
        raise ValueError("periodic_attention: an atom has no neighbour, not even its own image")
    ranges = []
    start = padding = 0
    for i, size in enumerate(sizes):
        padding += sizes[start] - size
        if padding > max(2000, 0.1 * sizes[start] * (i - start)):
            ranges.append((start, i))
            start, padding = i, 0
    return [*ranges, (start, len(sizes))] if sizes else []


def _radial_table(distance: Tensor, spacing: float, width: float, count: int) -> Tensor:
    """``radial_basis`` with the exponent clamped where the result is zero in single precision."""
    if distance.dtype == torch.float64:
        return radial_basis(distance, spacing, width, count)
    centers = torch.arange(1, count + 1, dtype=distance.dtype, device=distance.device) * spacing
    scale = math.sqrt(0.5) / width
    table = (distance[..., None] * scale - centers * scale).square_().neg_()
    return table.clamp_(min=-_UNDERFLOW).exp_()


def _pair_dot(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """sum_d x[i] y[j] for every pair: [H, P]."""
    return (x.index_select(0, i) * y.index_select(0, j)).sum(-1).t().contiguous()


def _spread(per_pair: Tensor, group: Group) -> Tensor:
    """Values of pairs [H, P] at their images: [H, n, M]."""
    return per_pair[:, group.pairs].index_select(1, group.pair).view(-1, *group.distance.shape)


def _gather(per_image: Tensor, group: Group) -> Tensor:
    """Sums over the images [H, n, M] of each pair of the group: [pairs, H]."""
    rows = per_image.view(len(per_image), -1).t().contiguous()
    return torch.segment_reduce(rows, "sum", offsets=group.runs, axis=0, unsafe=True)


def _logits(scores: Tensor, a: Tensor, group: Group) -> Tensor:
    """Logits [H, n, M] of a group from the pair scores q.k / sqrt(D) [H, P]."""
    logits = _spread(scores, group)
    logits.addcmul_(a[group.atoms].t()[..., None], group.squared[None])
    return logits.add_(group.bias)


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
    spacing: float,
    width: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, H, D], lse [N, H] and mean basis c [N, H, K] (see ``__init__`` for the arguments)."""
    plan = _plan(distance, source, row_ptr, bias, spacing, width, weight.shape[-1])
    atoms, heads, dim = q.shape
    scores = _pair_dot(q, plan.target, k, plan.source).div_(math.sqrt(dim))
    attention = []  # A_ij, [P, H] in the end
    lse = q.new_zeros(atoms, heads)
    mean_basis = q.new_zeros(atoms, heads, weight.shape[-1])
    for group in plan.groups:
        logits = _logits(scores, a, group)
        group_lse = logits.logsumexp(-1, keepdim=True)
        p = logits.sub_(group_lse).exp_()
        attention.append(_gather(p, group))
        lse[group.atoms] = group_lse[..., 0].t()
        mean = torch.bmm(p.transpose(0, 1), group.basis)
        mean_basis[group.atoms, :, : mean.shape[-1]] = mean
    y = torch.einsum("nhk,hdk->nhd", mean_basis, weight).contiguous()
    contribution = torch.cat(attention)[..., None] * v.index_select(0, plan.source)
    return y.index_add_(0, plan.target, contribution), lse, mean_basis


def backward(
    grad_y: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    weight: Tensor,
    distance: Tensor,
    source: Tensor,
    row_ptr: Tensor,
    bias: Tensor | None,
    y: Tensor,
    lse: Tensor,
    mean_basis: Tensor,
    spacing: float,
    width: float,
    distance_grad: bool,
) -> tuple[Tensor, ...]:
    """Gradients for q, k, v, a, weight and (if ``distance_grad``) distance; README.md section 3."""
    count = weight.shape[-1]
    plan = _plan(distance, source, row_ptr, bias, spacing, width, count)
    heads, dim = q.shape[1:]
    scores = _pair_dot(q, plan.target, k, plan.source).div_(math.sqrt(dim))
    value_score = _pair_dot(grad_y, plan.target, v, plan.source)  # go_i . v_j
    projected = torch.einsum("nhd,hdk->nhk", grad_y, weight)  # G_i = W^T go_i
    offset = (grad_lse - (grad_y * y).sum(-1)).t()  # [H, N]
    attention, grad_scores = [], []
    grad_a = torch.zeros_like(a)
    grad_distance = torch.zeros_like(distance) if distance_grad else distance.new_empty(0)
    centers = torch.arange(1, count + 1, dtype=q.dtype, device=q.device) * spacing
    for group in plan.groups:
        logits = _logits(scores, a, group)
        p = logits.sub_(lse[group.atoms].t()[..., None]).exp_()
        g = projected[group.atoms, :, : group.basis.shape[-1]]
        radial = torch.bmm(g, group.basis.transpose(1, 2)).transpose(0, 1)  # G . b, [H, n, M]
        d_logits = _spread(value_score, group).add_(radial)
        d_logits.add_(offset[:, group.atoms, None]).mul_(p)
        attention.append(_gather(p, group))
        grad_scores.append(_gather(d_logits, group))
        grad_a[group.atoms] = (d_logits * group.squared).sum(-1).t()
        if distance_grad:
            # b'_k = (mu_k - d) b_k / s^2, so G . b' needs one more product, with mu_k G_k
            slope = torch.bmm(g * centers[: g.shape[-1]], group.basis.transpose(1, 2)).transpose(
                0, 1
            )
            slope = (slope - group.distance * radial) / width**2
            along = 2 * a[group.atoms].t()[..., None] * group.distance * d_logits + p * slope
            valid = group.bias[0].flatten() > -math.inf
            if group.bias.shape[0] > 1:
                valid = (group.bias > -math.inf).any(0).flatten()
            grad_distance[group.edge[valid]] = along.sum(0).flatten()[valid]
    received = torch.cat(attention)[..., None]
    scored = torch.cat(grad_scores).div_(math.sqrt(dim))[..., None]
    i, j = plan.target, plan.source
    grad_q = torch.zeros_like(q).index_add_(0, i, scored * k.index_select(0, j))
    grad_k = torch.zeros_like(k).index_add_(0, j, scored * q.index_select(0, i))
    grad_v = torch.zeros_like(v).index_add_(0, j, received * grad_y.index_select(0, i))
    grad_weight = torch.einsum("nhd,nhk->hdk", grad_y, mean_basis)
    return grad_q, grad_k, grad_v, grad_a, grad_weight.contiguous(), grad_distance
