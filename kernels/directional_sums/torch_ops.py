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
    slot, shape = _slots(source, row_ptr)
    weights = _padded(radial * values[source], slot, shape)
    return weights.transpose(1, 2) @ _padded(table, slot, shape)


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
    slot, shape = _slots(source, row_ptr)
    by_weight = (_padded(table, slot, shape) @ grad.transpose(1, 2)).flatten(0, 1)[slot]
    by_table = (_padded(radial * mine, slot, shape) @ grad).flatten(0, 1)[slot]
    by_value = torch.zeros_like(values).index_add(0, source, by_weight * radial)
    return by_weight * mine, by_value, by_table


def _slots(source: Tensor, row_ptr: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the row of every neighbour in the padded table, and its atoms and room for each."""
    target = targets(source, row_ptr)
    atoms = len(row_ptr) - 1
    most = int(row_ptr.diff().max()) if atoms else 0
    place = torch.arange(len(source), device=source.device) - row_ptr[target]
    return place + target * most, (atoms, most)


def _padded(array: Tensor, slot: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return an array [E, ...] as [N, most neighbours of an atom, ...], with zeros elsewhere."""
    atoms, most = shape
    empty = array.new_zeros(atoms * most, array.shape[1])
    return empty.index_copy(0, slot, array).view(atoms, most, array.shape[1])
