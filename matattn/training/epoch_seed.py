"""Random numbers of an epoch that do not depend on the epochs before it."""

from __future__ import annotations

import lightning as L
import torch


class EpochSeed(L.Callback):
    """Seeds PyTorch's generators from run seed and epoch, so that dropout and masks of a resumed
    run are those of an uninterrupted one."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(1_000_003 * self.seed + trainer.current_epoch)
