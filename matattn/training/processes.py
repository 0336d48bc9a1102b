"""Communication between the processes of one training; with one process, there is none."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def number_and_count() -> tuple[int, int]:
    """Return the number of this process, and how many train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes; gradients go to this process's part only."""
    if number_and_count()[1] == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total + (values - values.detach())


def share_of_mean(mean: Tensor, count: Tensor) -> Tensor:
    """Return the loss of this process so that the gradients' mean is that of the overall mean.

    ``mean`` is over ``count`` values of this process; the overall mean is over all processes.
    """
    processes = number_and_count()[1]
    if processes == 1:
        return mean
    return mean * (processes * count / summed(count).clamp(min=1))


def balanced_share(sizes: Sequence[int], number: int, processes: int) -> list[int]:
    """Return the indices of the items of process ``number`` when ``sizes`` are shared evenly.

    Items go, the largest first, to the process with the least so far (Graham, SIAM J. Appl. Math.
    17, 416, 1969). No process stays empty if there are as many items as processes. The indices are
    sorted.
    """
    loads = [(0, 0)] * processes
    chosen = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        least = loads.index(min(loads))
        load, items = loads[least]
        loads[least] = load + sizes[index], items + 1
        if least == number:
            chosen.append(index)
    return sorted(chosen)
