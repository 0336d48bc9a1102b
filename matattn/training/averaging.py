"""Averages of the weights over the training."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging


class LastEpochsAveraging(WeightAveraging):
    """Average of the weights after every step of the last ``epochs`` epochs.

    Validation sees the averaged weights as soon as there are any, and the trained network ends with
    them. Frozen statistics (buffers) are copied, not averaged.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__(use_buffers=False)
        self.epochs = epochs
        self._begin = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer
        self._begin = (trainer.max_epochs or 0) - self.epochs

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and self._trainer.current_epoch >= self._begin

    @property
    def _started(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._started:  # until then the network itself is the best there is
            checkpoint["state_dict"] = checkpoint["current_model_state"]


class ExponentialAverage(L.Callback):
    """A moving average of the weights beside the trained ones, which it leaves alone.

    After every step ``average <- decay average + (1 - decay) weights``. It is kept as a state dict
    of ``module.network`` and travels with the checkpoint.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.weights:
            self.weights = {name: t.clone() for name, t in self._trained(pl_module).items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = self._trained(pl_module)
        averages = [self.weights[name] for name in now]
        torch._foreach_lerp_(averages, list(now.values()), 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = state_dict["weights"]

    @staticmethod
    def _trained(module: L.LightningModule) -> dict[str, torch.Tensor]:
        network: Any = module.network
        return {name: p.detach() for name, p in network.named_parameters()}
