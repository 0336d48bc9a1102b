"""Random numbers of a step that do not depend on the steps before it."""

from types import SimpleNamespace

import torch

from matattn.training.step_seed import StepSeed


def numbers(seed, step, rank=0):
    """What a step draws from PyTorch's generator."""
    callback, trainer = StepSeed(seed), SimpleNamespace(global_rank=rank, global_step=step)
    callback.on_train_start(trainer, SimpleNamespace(device=torch.device("cpu")))
    callback.on_train_batch_start(trainer, None, 0)
    return tuple(torch.rand(3).tolist())


def test_numbers_depend_on_seed_step_and_process_alone():
    with torch.random.fork_rng():
        expected = numbers(1, 7)
        torch.rand(100)
        assert numbers(1, 7) == expected
        others = [numbers(*of) for of in ((1, 8), (2, 7), (1, 7, 1), (0, 7), (1, 0))]
    assert len({expected, *others}) == 6
