"""What trainings on text have in common: one network, one loss, one schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from matattn.config import RunConfig
from matattn.text import Sentence
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import (
    GradientDescent,
    fit,
    log_loss,
    make_loaders,
    optimization,
    stop_unless_finite,
)

Batch = dict[str, Tensor]


class TextTraining(L.LightningModule):
    """Minimises ``loss`` of batches, which subclasses define; ``rows`` of a batch are its texts.

    Args:
        network: what is trained.
        optimizer, schedule: of AdamW.
        ids: of the training texts, to name those of a batch with a loss that is not finite.
        folder: where these are written.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: GradientDescent,
        schedule: Schedule,
        ids: Sequence[str],
        folder: Path,
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.ids, self.folder = ids, folder

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss of a batch; random choices come from ``generator`` if there is one."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.loss(batch)
        stop_unless_finite(loss, self, self.folder, self.ids, batch["rows"], "texts")
        log_loss(self, loss, len(batch["rows"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch."""
        generator = torch.Generator().manual_seed(batch_idx)  # the same choices in every epoch
        self.log("val/loss", self.loss(batch, generator), batch_size=len(batch["rows"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule."""
        return optimization(self, self.network, self.optimizer, self.schedule)


def opening(sentence: Sentence) -> str:
    """Return where a sentence stands, and how it begins: to name it in messages."""
    return f"{sentence.source}: {' '.join(sentence.words[:12])}"


def make_batches(
    config: RunConfig[Any, GradientDescent],
    splits: Mapping[str, Sequence[Any]],
    collate: Callable[[list[Any]], Batch],
) -> dict[str, DataLoader]:
    """Return loaders of the texts of ``splits`` (train and perhaps val)."""

    def collated(items: list[tuple[int, Any]]) -> Batch:
        rows, texts = zip(*items, strict=True)
        return collate(list(texts)) | {"rows": torch.tensor(rows)}

    numbered = {split: list(enumerate(texts)) for split, texts in splits.items() if texts}
    return make_loaders(numbered, config.task.batch_size, config.seed, collated)


def train(
    config: RunConfig[Any, GradientDescent],
    folder: Path,
    module: TextTraining,
    loaders: Mapping[str, DataLoader],
    epochs: int | None = None,
) -> RunLog:
    """Train on batches of texts and return the log; ``epochs`` as of ``fit``."""
    log = RunLog(folder / "metrics.csv", {"train/loss": "loss {:.4f}", "val/loss": "val {:.4f}"})
    fit(config, folder, module, loaders, log, epochs=epochs)
    return log
