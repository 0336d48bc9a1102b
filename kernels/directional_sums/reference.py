"""The formulas of README.md, one array operation after the other: slow, and to be trusted."""

from __future__ import annotations

import torch
from torch import Tensor


def targets(source: Tensor, row_ptr: Tensor) -> Tensor:
    """Return the atom [E] whose neighbour each row is.

    Raises ValueError where ``row_ptr`` does not run from 0 to E.
    """
    counts = row_ptr.diff()
    if row_ptr[0] != 0 or row_ptr[-1] != len(source) or bool((counts < 0).any()):
        raise ValueError("directional_sums: row_ptr must run from 0 to the number of neighbours")
    return torch.repeat_interleave(counts)


def check_source(source: Tensor, atoms: int) -> None:
    """Raise ValueError where ``source`` names no atom."""
    if len(source) and not (0 <= int(source.min()) and int(source.max()) < atoms):
        raise ValueError(f"directional_sums: source must lie in 0..N - 1 for N = {atoms} atoms")


def forward(
    radial: Tensor, values: Tensor, table: Tensor, source: Tensor, row_ptr: Tensor
) -> Tensor:
    """Compute A [N, C, F]."""
    check_source(source, len(values))
    target = targets(source, row_ptr)
    terms = (radial * values[source])[:, :, None] * table[:, None]
    sums = terms.new_zeros(len(row_ptr) - 1, *terms.shape[1:])
    return sums.index_add(0, target, terms)


def backward(
    grad: Tensor,
    radial: Tensor,
    values: Tensor,
    table: Tensor,
    source: Tensor,
    row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients by r, v and y from that by A; they can be differentiated again."""
    slope = grad[targets(source, row_ptr)]  # [E, C, F]
    weights = radial * values[source]
    by_weight = (slope * table[:, None]).sum(2)
    by_table = (slope * weights[:, :, None]).sum(1)
    by_value = torch.zeros_like(values).index_add(0, source, by_weight * radial)
    return by_weight * values[source], by_value, by_table
