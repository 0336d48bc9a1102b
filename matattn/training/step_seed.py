"""Random numbers of a training step that do not depend on the steps before it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class StepSeed(L.Callback):
    """A new seed for PyTorch's generators at every step, from the seed of the run and the step.

    Dropout and masks of a resumed run are then those of an uninterrupted one. Only the generators
    of the CPU and of the device in use are seeded: ``torch.manual_seed`` also records its call for
    every other kind of device, which takes milliseconds.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the generators of the CPU and of the device in use."""
        self._first = 10_000_019 * self.seed + 1_000_003 * trainer.global_rank
        self._generators: list[Any] = [torch.default_generator]
        if pl_module.device.type != "cpu":
            self._generators.append(torch.get_device_module(pl_module.device))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Seed the generators for this step."""
        seed = self._first + trainer.global_step
        for generator in self._generators:
            generator.manual_seed(seed)
