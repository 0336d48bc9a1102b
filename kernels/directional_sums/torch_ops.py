"""The ``torch`` backend: products of matrices, one for each atom, of one size.

Neighbours stand in a table with room for as many as any atom has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import check_source, targets


def forward(
    radial: Tensor, values: Tensor, table: Tensor, source: Tensor, row_ptr: Tensor
) -> Tensor:
    """Compute A [N, C, F]."""
    check_source(source, len(values))
    weights, functions = _padded(source, row_ptr, radial * values[source], table)
    return weights.transpose(1, 2) @ functions


def backward(
    grad: Tensor,
    radial: Tensor,
    values: Tensor,
    table: Tensor,
    source: Tensor,
    row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients by r, v and y from that by A."""
    mine = values[source]
    weights, functions = _padded(source, row_ptr, radial * mine, table)
    kept = _slots(source, row_ptr)[0]
    by_weight = (functions @ grad.transpose(1, 2)).flatten(0, 1)[kept]
    by_table = (weights @ grad).flatten(0, 1)[kept]
    by_value = torch.zeros_like(values).index_add(0, source, by_weight * radial)
    return by_weight * mine, by_value, by_table


def _slots(source: Tensor, row_ptr: Tensor) -> tuple[Tensor, int]:
    """Return the row of every neighbour in the padded table, and the room for an atom."""
    target = targets(source, row_ptr)
    most = int(row_ptr.diff().max()) if len(row_ptr) > 1 else 0
    place = torch.arange(len(source), device=source.device) - row_ptr[target]
    return place + target * most, most


def _padded(source: Tensor, row_ptr: Tensor, *arrays: Tensor) -> list[Tensor]:
    """Return arrays [E, ...] as [N, most neighbours of an atom, ...], with zeros elsewhere."""
    slot, most = _slots(source, row_ptr)
    atoms = len(row_ptr) - 1
    empty = (a.new_zeros(atoms * most, a.shape[1]) for a in arrays)
    return [
        e.index_copy(0, slot, a).view(atoms, most, a.shape[1])
        for e, a in zip(empty, arrays, strict=True)
    ]
