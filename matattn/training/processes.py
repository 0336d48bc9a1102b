"""What the processes of one training tell each other; with one process, nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def number_and_count() -> tuple[int, int]:
    """Number of this process, and how many train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(values: Tensor) -> Tensor:
    """Sum of every process's ``values``. The gradient of a process is that of its own part."""
    if number_and_count()[1] == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total + (values - values.detach())


def share_of_mean(mean: Tensor, count: Tensor) -> Tensor:
    """What to differentiate so that the mean of the processes' gradients is that of one mean.

    ``mean`` is over ``count`` values of this process; the one mean is over those of all of them.
    """
    processes = number_and_count()[1]
    if processes == 1:
        return mean
    return mean * (processes * count / summed(count).clamp(min=1))


def balanced_share(sizes: Sequence[int], number: int, processes: int) -> list[int]:
    """Places of the items of process ``number``, in order, when ``sizes`` are dealt out evenly.

    The largest first, each to the process with the least so far (Graham, SIAM J. Appl. Math. 17,
    416, 1969). With as many items as processes or more, each gets one at least.
    """
    loads = [(0, 0)] * processes
    chosen = []
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        least = loads.index(min(loads))
        load, items = loads[least]
        loads[least] = load + sizes[place], items + 1
        if least == number:
            chosen.append(place)
    return sorted(chosen)
