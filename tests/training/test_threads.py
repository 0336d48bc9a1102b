from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from matattn.training import threads
from matattn.training.threads import ThreadChoice

CLOCK = SimpleNamespace(now=0.0, perf_counter=lambda: CLOCK.now)


class Module(L.LightningModule):
    """A training whose steps take as long as ``seconds`` says for the number of threads."""

    def __init__(self, seconds):
        super().__init__()
        self.layer, self.norm, self.seconds = nn.Linear(3, 3), nn.BatchNorm1d(3), seconds
        self.steps = []

    def training_step(self, batch, batch_idx):
        self.steps.append(torch.get_num_threads())
        CLOCK.now += self.seconds[torch.get_num_threads()]
        self.log("loss", 1.0)
        return self.norm(self.layer(torch.randn(4, 3))).square().sum()


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.setattr(threads, "time", CLOCK)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def trainer(world_size=1):
    plugin = SimpleNamespace(train_step_context=nullcontext)
    return SimpleNamespace(world_size=world_size, precision_plugin=plugin)


def started(seconds, **kwargs):
    module, choice = Module(seconds), ThreadChoice()
    choice.on_train_start(trainer(**kwargs), module)
    choice.on_train_batch_start(trainer(**kwargs), module, None, 0)
    return module, choice


@pytest.mark.parametrize(
    "seconds, chosen, tried",
    [
        ({1: 0.04, 2: 0.02, 4: 0.01}, 4, {1, 2, 4}),
        ({1: 0.04, 2: 0.02, 4: 0.02}, 2, {1, 2, 4}),
        ({1: 0.02, 2: 0.02, 4: 0.001}, 1, {1, 2}),
    ],
)
def test_threads_are_doubled_while_that_helps(seconds, chosen, tried):
    module, choice = started(seconds)
    assert choice.threads == torch.get_num_threads() == chosen
    assert set(module.steps) == tried


def test_measured_steps_leave_nothing_behind():
    torch.manual_seed(0)
    module = Module({1: 0, 2: 0, 4: 0})
    module.layer.weight.grad = torch.ones(3, 3)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    generator = torch.get_rng_state()
    choice = ThreadChoice()
    choice.on_train_start(trainer(), module)
    choice.on_train_batch_start(trainer(), module, None, 0)
    assert module.steps
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert module.layer.weight.grad.eq(1).all() and module.layer.bias.grad is None
    assert torch.equal(torch.get_rng_state(), generator)
    assert "log" not in module.__dict__


def test_a_busy_machine_gets_one_thread_and_is_tried_again():
    module, choice = started({1: 0.01, 2: 0.2, 4: 0.2})
    assert choice.threads == 1 and module.steps.count(2) == 1  # one hopeless step is enough
    module.seconds = {1: 0.01, 2: 0.004, 4: 0.004}
    measured = 5 * 0.01 + 0.2  # s
    CLOCK.now += 0.9 * threads.PATIENCE * measured
    choice.on_train_batch_start(trainer(), module, None, 0)
    assert choice.threads == 1
    CLOCK.now += 0.2 * threads.PATIENCE * measured
    choice.on_train_batch_start(trainer(), module, None, 5)  # not within an epoch
    assert choice.threads == 1
    choice.on_train_batch_start(trainer(), module, None, 0)
    assert choice.threads == 2


def test_steps_that_become_slow_are_measured_again():
    module, choice = started({1: 0.02, 2: 0.01, 4: 0.01})
    assert choice.threads == 2
    module.seconds = {1: 0.02, 2: 0.1, 4: 0.1}
    for _ in range(2 * threads.STEPS + 1):
        choice.on_train_batch_start(trainer(), module, None, 0)
        CLOCK.now += module.seconds[torch.get_num_threads()]
        choice.on_train_batch_end()
    assert choice.threads == 1


def test_a_resumed_run_keeps_its_number():
    choice, module = ThreadChoice(), Module({1: 0, 2: 0, 4: 0})
    choice.load_state_dict({"threads": 2})
    choice.on_train_start(trainer(), module)
    choice.on_train_batch_start(trainer(), module, None, 0)
    assert torch.get_num_threads() == 2 and not module.steps
    assert choice.state_dict() == {"threads": 2}


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed_numbers_and_several_processes_are_left_alone(monkeypatch, fixed):
    if fixed:
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
    module, choice = started({4: 0}, world_size=1 if fixed else 2)
    assert choice.threads is None and not module.steps and torch.get_num_threads() == 4


def test_an_optimization_of_its_own_is_left_alone():
    """As that of wave functions, whose steps return no loss."""
    module, choice = Module({4: 0}), ThreadChoice()
    module.automatic_optimization = False
    choice.on_train_start(trainer(), module)
    choice.on_train_batch_start(trainer(), module, None, 0)
    assert choice.threads is None and not module.steps and torch.get_num_threads() == 4
