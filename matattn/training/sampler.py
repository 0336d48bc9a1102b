"""The order of the training rows, and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from matattn.training.processes import balanced_share, number_and_count


class EpochShuffle(Sampler[int]):
    """A permutation of the rows that depends on seed and epoch alone.

    A resumed run therefore sees the same order, which a sampler with a generator does not promise:
    the generator's state is in no checkpoint. Lightning calls ``set_epoch`` before every epoch.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist())


class SharedBatches(Sampler[list[int]]):
    """Batches of ``batch_size`` rows; a last, smaller one is left out.

    Where several processes train, each gets its share of every batch, with about the same sum of
    ``sizes`` (None: each gets all rows). Batches do not depend on the number of processes.
    """

    def __init__(self, sampler: EpochShuffle, batch_size: int, sizes: Sequence[int] | None) -> None:
        self.sampler, self.batch_size, self.sizes = sampler, batch_size, sizes

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        number, processes = number_and_count()
        rows = list(self.sampler)
        for step in range(len(self)):
            batch = rows[step * self.batch_size : (step + 1) * self.batch_size]
            if processes > 1 and self.sizes is not None:
                sizes = [self.sizes[row] for row in batch]
                batch = [batch[index] for index in balanced_share(sizes, number, processes)]
            yield batch
