"""Random numbers of a training step that do not depend on the steps before it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class StepSeed(L.Callback):
    """Seeds PyTorch's generators from run seed and step, so that dropout and masks of a resumed
    run are those of an uninterrupted one."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        step = 10_000_019 * self.seed + trainer.global_step
        torch.manual_seed(step + 1_000_003 * trainer.global_rank)
