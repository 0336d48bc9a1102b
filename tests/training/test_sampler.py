"""The order of the training rows, alone and in several processes."""

import pytest

from matattn.training import sampler
from matattn.training.sampler import EpochShuffle, SharedBatches


def order(seed, epoch):
    rows = EpochShuffle(50, seed)
    rows.set_epoch(epoch)
    return list(rows)


def test_order_depends_on_seed_and_epoch_alone():
    assert sorted(order(1, 3)) == list(range(50)) and len(EpochShuffle(50, 1)) == 50
    assert order(1, 3) == order(1, 3)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_a_last_smaller_batch_is_left_out():
    batches = SharedBatches(EpochShuffle(50, 0), 8, None)
    assert len(batches) == len(list(batches)) == 6
    assert [row for batch in batches for row in batch] == order(0, 0)[:48]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(monkeypatch, processes):
    sizes = [1 + row % 7 for row in range(50)]
    alone = list(SharedBatches(EpochShuffle(50, 4), 9, sizes))
    shares = []
    for number in range(processes):
        monkeypatch.setattr(sampler, "number_and_count", lambda n=number: (n, processes))
        shares.append(list(SharedBatches(EpochShuffle(50, 4), 9, sizes)))
        assert list(SharedBatches(EpochShuffle(50, 4), 9, None)) == alone
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(row for part in parts for row in part) == sorted(batch)
        loads = [sum(sizes[row] for row in part) for part in parts]
        assert max(loads) - min(loads) <= 7
