"""How many threads a training on a CPU uses: as many as make its steps faster."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

STEPS = 5  # that are measured with each number of threads
ENOUGH = 1.0  # s of measured steps
GAIN = 1.4  # by which twice the threads must be faster
SLOWED = 2.0  # times the measured duration: something else needs the cores
PATIENCE = 20  # times what the last measurement took, before more threads are tried again


class ThreadChoice(L.Callback):
    """Doubles the threads as long as each doubling makes the steps 1.4 times faster.

    OpenMP's threads wait for each other by spinning. Small networks gain nothing from several, and
    on a machine with other work their steps take tens of times as long, because a thread that
    waits keeps the one that it waits for from its core. The numbers are measured with the first
    batch, and again when steps have become twice as slow. If that leaves one thread, more are
    tried in a later epoch, after 20 times the time that the measurement took.

    Steps that are measured leave nothing behind, so that only the number itself can have an effect
    on rounding. It is part of the checkpoint: a resumed run begins with it. ``OMP_NUM_THREADS``
    fixes it. PyTorch's own number is the most that is tried. Trainings on other devices, in several
    processes, or with an optimization of their own (wave functions) are left alone.
    """

    def __init__(self) -> None:
        self.threads: int | None = None
        self._most = 1
        self._expected = 0.0  # s of a step
        self._times: list[float] = []
        self._undecided = False
        self._next_try = float("inf")  # s, of the clock

    def state_dict(self) -> dict[str, Any]:
        """Return the number of threads, for the checkpoint."""
        return {"threads": self.threads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the number of threads of a checkpoint."""
        self.threads = state_dict.get("threads")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the number of the checkpoint, if there is one."""
        alone = trainer.world_size == 1 and pl_module.device.type == "cpu"
        measurable = alone and pl_module.automatic_optimization  # jax has threads of its own
        fixed = "OMP_NUM_THREADS" in os.environ or not measurable
        self._most = 1 if fixed else torch.get_num_threads()
        self._undecided = self._most > 1 and self.threads is None
        if self._most > 1 and self.threads is not None:
            torch.set_num_threads(min(self.threads, self._most))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide where there is something to decide, and start the clock."""
        if batch_idx == 0 and time.perf_counter() >= self._next_try:
            self._undecided = True
        if self._undecided:
            with _without_traces(pl_module):

                def step() -> None:
                    with trainer.precision_plugin.train_step_context():
                        loss: Any = pl_module.training_step(batch, batch_idx)
                    loss.backward()

                self._decide(step)
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Notice when steps have become slow."""
        if self._most == 1 or self.threads == 1:
            return
        self._times.append(time.perf_counter() - self._start)
        if len(self._times) == 2 * STEPS:
            duration = statistics.median(self._times)
            self._times = []
            self._expected = self._expected or duration
            self._undecided = duration > SLOWED * self._expected

    def _decide(self, step: Callable[[], None]) -> None:
        begin = time.perf_counter()
        again, hindered = self.threads is not None, False
        self.threads, self._expected = 1, _duration(step, 1, float("inf"))
        while 2 * self.threads <= self._most:
            duration = _duration(step, 2 * self.threads, 3 * self._expected)
            if self._expected < GAIN * duration:
                hindered = duration > 3 * self._expected
                break
            self.threads, self._expected = 2 * self.threads, duration
        torch.set_num_threads(self.threads)
        self._undecided, self._times = False, []
        now = time.perf_counter()
        later = self.threads == 1 and (again or hindered)
        self._next_try = now + PATIENCE * (now - begin) if later else float("inf")


def _duration(step: Callable[[], None], threads: int, limit: float) -> float:
    """Return the median of some steps, s; the last one if it takes longer than ``limit``."""
    torch.set_num_threads(threads)
    times: list[float] = []
    while len(times) < STEPS and sum(times) < ENOUGH:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        if times[-1] > limit:
            return times[-1]
    return statistics.median(times)


@contextmanager
def _without_traces(module: L.LightningModule) -> Iterator[None]:
    """Keep what training steps change: gradients, buffers, random numbers and logged values."""
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    module.__dict__["log"] = lambda *args, **kwargs: None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        del module.__dict__["log"]
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
