"""Callbacks that average the weights over the training."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class LastEpochsAveraging(WeightAveraging):
    """The mean of the weights after every step of the last ``epochs`` epochs.

    Validation uses the averaged weights as soon as there are any, and the network keeps them after
    the training. Buffers, such as frozen statistics, are copied, not averaged.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__(use_buffers=False)
        self.epochs = epochs
        self._begin = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the average, and find the epoch in which it begins."""
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer
        self._begin = (trainer.max_epochs or 0) - self.epochs

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether this is a step of the last epochs."""
        return step_idx is not None and self._trainer.current_epoch >= self._begin

    @property
    def _started(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the averaged weights."""
        if self._started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the trained weights."""
        if self._started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the averaged weights in the network."""
        if self._started:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store both weights, the averaged ones as those of the network."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._started:  # there is no average yet
            checkpoint["state_dict"] = checkpoint["current_model_state"]


class ExponentialAverage(L.Callback):
    """A moving average of the weights, beside the trained ones, which stay as they are.

    After every step ``average <- decay average + (1 - decay) weights``, from the initial weights
    on. The average is a state dict of ``module.network``, and part of the checkpoint.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the weights of the checkpoint, else with those of the network."""
        begin = self.weights or self._trained(pl_module)
        self.weights = {name: t.to(pl_module.device, copy=True) for name, t in begin.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Update the average."""
        trained = self._trained(pl_module)
        averages = [self.weights[name] for name in trained]
        get_ema_multi_avg_fn(self.decay)(averages, list(trained.values()), None)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, for the checkpoint."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average of a checkpoint."""
        self.weights = state_dict["weights"]

    @staticmethod
    def _trained(module: L.LightningModule) -> dict[str, torch.Tensor]:
        network: Any = module.network
        return {name: p.detach() for name, p in network.named_parameters()}
