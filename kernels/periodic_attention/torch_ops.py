r"""The ``torch`` backend: vectorised PyTorch on any device, no compiler needed.

The pair tensor [E, H, D] is never formed (deferred projection, README.md section 2): with
:math:`c_i = \sum P_{ijn} b(d_{ijn})` the output is :math:`y_i = \sum_j A_{ij} v_j + W c_i`, where
:math:`A_{ij} = \sum_n P_{ijn}`. For the E images there are two batched matrix products with the
table of radial functions per head group; products of q, k and v are computed once per pair of atoms
(i, j).

The ``Plan`` holds everything that depends on geometry alone, which is the same for all layers and
for the backward pass; the last plan is kept. It puts atoms with similar numbers of neighbours into
padded groups, sorts each atom's neighbours by distance, and cuts them into shells. In a shell only
a window of the radial functions differs from zero, so the tables and products stay narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import Moments

_NEGLIGIBLE = {torch.float64: 40.0}  # radial functions below e^-40 (float32: e^-20) are left out
_UNDERFLOW = 80.0  # the exponential of far smaller numbers is slow on CPUs


@dataclass(frozen=True)
class Shell:
    """Neighbours in a range of distances, and the radial functions that reach them."""

    neighbors: slice  # columns of the group
    functions: slice  # of the K radial functions
    basis: Tensor  # [n, columns, functions]


@dataclass(frozen=True)
class Group:
    """Atoms with similar numbers of neighbours, padded to the largest of them (M).

    Neighbours of an atom are sorted by distance; padding repeats the last one.
    """

    atoms: Tensor  # [n] target atoms
    edge: Tensor  # [n * M] position in the flat list
    distance: Tensor  # [n, M] Å
    squared: Tensor  # [n, M] Å^2
    bias: Tensor  # [1 or H, n, M], -inf in the padding
    shells: list[Shell]
    pairs: slice  # its pairs (i, j) in the plan's list
    pair: Tensor  # [n * M] pair of each neighbour, counted from pairs.start
    by_pair: Tensor  # [valid] positions in [n * M], sorted by pair, without padding
    runs: Tensor  # [number of pairs + 1] where each pair begins in by_pair


@dataclass(frozen=True)
class Plan:
    """All tables that depend on the geometry of one batch alone."""

    made_from: tuple  # copies of the arguments, to check whether they are still the same
    target: Tensor  # [P] atoms i of the distinct pairs (i, j) in the list
    source: Tensor  # [P] atoms j
    groups: list[Group]


_last_plan: Plan | None = None


def _plan(*arguments: Any) -> Plan:
    """Return the plan of this geometry, the last one if its arguments have equal content.

    The comparison costs little beside the work on them, and notices changes in place.
    """
    global _last_plan
    plan = _last_plan
    if plan is None or not _same(plan.made_from, arguments):
        copies = tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments)
        _last_plan = plan = _make_plan(copies, *arguments)
    return plan


def _same(old: tuple, new: tuple) -> bool:
    """Return whether all arguments have equal content."""
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
    """Make the plan of a geometry."""
    counts = row_ptr.diff()
    atoms = counts.numel()
    target = torch.repeat_interleave(torch.arange(atoms, device=distance.device), counts)
    pair_of_edge = target * atoms + source
    if bias is not None and bias.dim() == 1:
        bias = bias[:, None]

    sizes, order = counts.sort(descending=True, stable=True)
    groups: list[Group] = []
    pair_lists: list[Tensor] = []
    done = 0
    for start, stop in _similar_sizes(sizes.tolist()):
        member = order[start:stop]
        size = counts[member, None]
        column = torch.arange(int(sizes[start]), device=distance.device)
        padding = column >= size
        edge = row_ptr[member, None] + torch.minimum(column, size - 1)
        by_distance = distance[edge].masked_fill(padding, math.inf).argsort(dim=1, stable=True)
        edge = edge.gather(1, by_distance)
        d = distance[edge]
        mask = torch.zeros((), dtype=distance.dtype, device=distance.device)
        if bias is not None:
            mask = bias[edge].movedim(-1, 0).to(distance)
        pairs, pair = pair_of_edge[edge].unique(return_inverse=True)
        valid = (~padding).flatten().nonzero()[:, 0]
        in_order, by_pair = pair.flatten()[valid].sort(stable=True)
        lengths = torch.bincount(in_order, minlength=len(pairs))
        groups.append(
            Group(
                atoms=member,
                edge=edge.flatten(),
                distance=d,
                squared=d.square(),
                bias=torch.where(padding, -math.inf, mask).view(-1, *d.shape),
                shells=_shells(d, spacing, width, count),
                pairs=slice(done, done + len(pairs)),
                pair=pair.flatten(),
                by_pair=valid[by_pair],
                runs=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            )
        )
        pair_lists.append(pairs)
        done += len(pairs)
    pairs = torch.cat(pair_lists) if pair_lists else target
    return Plan(made_from, pairs // atoms, pairs % atoms, groups)


def _shells(distance: Tensor, spacing: float, width: float, count: int) -> list[Shell]:
    """Cut the columns of [n, M] distances, sorted along M, into up to six shells."""
    reach = width * math.sqrt(2 * _NEGLIGIBLE.get(distance.dtype, 20.0))
    number = min(6, 1 + distance.numel() // 4096, distance.shape[1])
    edges = [round(i * distance.shape[1] / number) for i in range(number + 1)]
    shells = []
    for begin, end in zip(edges, edges[1:], strict=False):
        d = distance[:, begin:end]
        first = max(0, math.ceil((float(d.min()) - reach) / spacing) - 1)
        last = max(first, min(count, math.floor((float(d.max()) + reach) / spacing)))
        functions = slice(first, last)
        shells.append(Shell(slice(begin, end), functions, _basis(d, spacing, width, functions)))
    return shells


def _basis(distance: Tensor, spacing: float, width: float, functions: slice) -> Tensor:
    """Compute some of the functions of ``reference.radial_basis``: [..., functions]."""
    scale = math.sqrt(0.5) / width
    centers = _centers(functions, spacing, distance) * scale
    table = (distance[..., None] * scale - centers).square_().neg_()
    return table.clamp_(min=-_UNDERFLOW).exp_()


def _centers(functions: slice, spacing: float, like: Tensor) -> Tensor:
    """Return the centres of radial functions, Å."""
    numbers = torch.arange(functions.start, functions.stop, dtype=like.dtype, device=like.device)
    return (numbers + 1) * spacing


def _mean_basis(p: Tensor, group: Group, count: int) -> Tensor:
    """Compute sum_m p[h, n, m] b(d[n, m]) of H heads, or heads and channels: [n, H, K]."""
    mean = p.new_zeros(p.shape[1], p.shape[0], count)
    for shell in group.shells:
        part = p[..., shell.neighbors].transpose(0, 1)
        mean[..., shell.functions] += torch.bmm(part, shell.basis)
    return mean


def _project(g: Tensor, group: Group) -> Tensor:
    """Compute g[n, h] . b(d[n, m]) for every image: [H, n, M]."""
    parts = [
        torch.bmm(g[..., shell.functions], shell.basis.transpose(1, 2)) for shell in group.shells
    ]
    return torch.cat(parts, dim=-1).transpose(0, 1)


def _similar_sizes(sizes: list[int]) -> list[tuple[int, int]]:
    """Return ranges of a descending list that are padded together.

    A range ends where its padding would exceed both 2,000 neighbours (the cost of the calls for
    another range) and a tenth of its area.
    """
    if sizes and sizes[-1] == 0:
        raise ValueError("periodic_attention: an atom has no neighbour; add its own image at d = 0")
    ranges = []
    start = padding = 0
    for i, size in enumerate(sizes):
        padding += sizes[start] - size
        if padding > max(2000, 0.1 * sizes[start] * (i - start)):
            ranges.append((start, i))
            start, padding = i, 0
    return [*ranges, (start, len(sizes))] if sizes else []


def _pair_dot(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """Compute sum_d x[i] y[j] for every pair: [H, P]."""
    return (x.index_select(0, i) * y.index_select(0, j)).sum(-1).t().contiguous()


def _spread(per_pair: Tensor, group: Group) -> Tensor:
    """Copy values of pairs [H, P] to their images: [H, n, M]."""
    return per_pair[:, group.pairs].index_select(1, group.pair).view(-1, *group.distance.shape)


def _gather(per_image: Tensor, group: Group) -> Tensor:
    """Sum over the images [H, n, M] of each pair of the group: [pairs, H]."""
    rows = per_image.flatten(1).index_select(1, group.by_pair).t().contiguous()
    return torch.segment_reduce(rows, "sum", offsets=group.runs, axis=0, unsafe=True)


def _logits(scores: Tensor, a: Tensor, group: Group) -> Tensor:
    """Compute the logits [H, n, M] of a group from the pair scores q.k / sqrt(D) [H, P]."""
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
    moments: Moments | None,
    spacing: float,
    width: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute y [N, H, D], lse [N, H], mean basis c [N, H, K] and M [N, H, C, F], or nothing."""
    plan = _plan(distance, source, row_ptr, bias, spacing, width, weight.shape[-1])
    atoms, heads, dim = q.shape
    scores = _pair_dot(q, plan.target, k, plan.source).div_(math.sqrt(dim))
    attention = []  # A_ij, [P, H] in the end
    lse = q.new_zeros(atoms, heads)
    mean_basis = q.new_zeros(atoms, heads, weight.shape[-1])
    m = q.new_empty(0)
    if moments is not None:
        m = q.new_zeros(*moments.u.shape, moments.table.shape[1])
    for group in plan.groups:
        logits = _logits(scores, a, group)
        group_lse = logits.logsumexp(-1, keepdim=True)
        p = logits.sub_(group_lse).exp_()
        attention.append(_gather(p, group))
        lse[group.atoms] = group_lse[..., 0].t()
        mean_basis[group.atoms] = _mean_basis(p, group, weight.shape[-1])
        if moments is not None:
            terms = (_values(moments, plan, group) * p[:, None]).flatten(0, 1).transpose(0, 1)
            m[group.atoms] = torch.bmm(terms, _rows(moments, group)).view(-1, *m.shape[1:])
    y = torch.einsum("nhk,hdk->nhd", mean_basis, weight).contiguous()
    contribution = torch.cat(attention)[..., None] * v.index_select(0, plan.source)
    return y.index_add_(0, plan.target, contribution), lse, mean_basis, m


def _values(moments: Moments, plan: Plan, group: Group) -> Tensor:
    """Compute u_j + U b(d) of every image: [H, C, n, M]."""
    heads, channels, count = moments.weight.shape
    of_pair = moments.u.index_select(0, plan.source[group.pairs]).flatten(1).t()
    spread = of_pair.index_select(1, group.pair).view(-1, *group.distance.shape)
    spread = spread + _project(_of_each(moments.weight, group), group)
    return spread.view(heads, channels, *group.distance.shape)


def _of_each(weight: Tensor, group: Group) -> Tensor:
    """Repeat U [H, C, K] for the atoms of a group: [n, H * C, K]."""
    return weight.flatten(0, 1).expand(len(group.atoms), -1, -1)


def _rows(moments: Moments, group: Group) -> Tensor:
    """Return the table of the images of a group: [n, M, F]."""
    return moments.table[group.edge].view(*group.distance.shape, -1)


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
    count = weight.shape[-1]
    plan = _plan(distance, source, row_ptr, bias, spacing, width, count)
    heads, dim = q.shape[1:]
    scores = _pair_dot(q, plan.target, k, plan.source).div_(math.sqrt(dim))
    value_score = _pair_dot(grad_y, plan.target, v, plan.source)  # go_i . v_j
    projected = torch.einsum("nhd,hdk->nhk", grad_y, weight)  # G_i = W^T go_i
    offset = grad_lse - (grad_y * y).sum(-1)
    attention, grad_scores, sent_to = [], [], []
    grad_a = torch.zeros_like(a)
    grad_distance = torch.zeros_like(distance) if distance_grad else distance.new_empty(0)
    grad_u, grad_u_weight, grad_table = (q.new_empty(0) for _ in range(3))
    if moments is not None:
        offset = offset - (grad_m * m).sum((-1, -2))
        grad_u, grad_u_weight = torch.zeros_like(moments.u), torch.zeros_like(moments.weight)
        grad_table = torch.zeros_like(moments.table) if table_grad else grad_table
    offset = offset.t()  # [H, N]
    centers = _centers(slice(0, count), spacing, q)
    for group in plan.groups:
        logits = _logits(scores, a, group)
        p = logits.sub_(lse[group.atoms].t()[..., None]).exp_()
        g = projected[group.atoms]
        radial = _project(g, group)  # G . b, [H, n, M]
        d_logits = _spread(value_score, group).add_(radial)
        valid = group.by_pair
        if moments is not None:
            heads, channels, functions = m.shape[1:]
            values, rows = _values(moments, plan, group), _rows(moments, group)
            incoming = grad_m[group.atoms].view(-1, heads * channels, functions)
            by_value = torch.bmm(incoming, rows.transpose(1, 2)).transpose(0, 1)
            by_value = by_value.reshape(values.shape)
            d_logits.add_((by_value * values).sum(1))
            sent = (by_value * p[:, None]).flatten(0, 1)  # [H * C, n, M]
            sent_to.append(_gather(sent, group))
            grad_u_weight += _mean_basis(sent, group, count).sum(0).view(heads, channels, count)
            if table_grad:
                terms = (values * p[:, None]).flatten(0, 1).permute(1, 2, 0)
                grad_table[group.edge[valid]] = torch.bmm(terms, incoming).flatten(0, 1)[valid]
        d_logits.add_(offset[:, group.atoms, None]).mul_(p)
        attention.append(_gather(p, group))
        grad_scores.append(_gather(d_logits, group))
        grad_a[group.atoms] = (d_logits * group.squared).sum(-1).t()
        if distance_grad:
            # b'_k = (mu_k - d) b_k / s^2, so G . b' needs one more product, with mu_k G_k
            slope = _project(g * centers, group)
            slope = (slope - group.distance * radial) / width**2
            along = 2 * a[group.atoms].t()[..., None] * group.distance * d_logits + p * slope
            if moments is not None:
                each = _of_each(moments.weight, group)
                slope = _project(each * centers, group) - group.distance * _project(each, group)
                along.add_((sent * slope).view_as(values).sum(1) / width**2)
            grad_distance[group.edge[valid]] = along.sum(0).flatten()[valid]
    received = torch.cat(attention)[..., None]
    scored = torch.cat(grad_scores).div_(math.sqrt(dim))[..., None]
    i, j = plan.target, plan.source
    grad_q = torch.zeros_like(q).index_add_(0, i, scored * k.index_select(0, j))
    grad_k = torch.zeros_like(k).index_add_(0, j, scored * q.index_select(0, i))
    grad_v = torch.zeros_like(v).index_add_(0, j, received * grad_y.index_select(0, i))
    grad_weight = torch.einsum("nhd,nhk->hdk", grad_y, mean_basis)
    if moments is not None:
        grad_u.index_add_(0, j, torch.cat(sent_to).view(-1, *grad_u.shape[1:]))
    return (
        grad_q, grad_k, grad_v, grad_a, grad_weight.contiguous(), grad_distance,
        grad_u, grad_u_weight, grad_table,
    )  # fmt: skip
