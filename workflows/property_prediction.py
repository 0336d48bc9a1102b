"""Train a network to predict properties of crystals.

``run(config, folder)`` reads the data, trains, and writes the run folder: metrics, predictions,
plots, report and the model bundle.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from matattn import bundle
from matattn.batch import CrystalBatch, collate
from matattn.config import build
from matattn.dataset import SPLITS, PropertyDataset
from matattn.errors import ConfigError, TrainingError
from matattn.files import write_json, write_text
from matattn.metrics import evaluate
from matattn.neighbors import HasImageRule
from matattn.runtime import share_cores
from matattn.training.averaging import LastEpochsAveraging
from matattn.training.optimizers import adamw, per_step
from matattn.training.run_log import RunLog
from matattn.training.sampler import EpochShuffle
from matattn.workflows import report
from matattn.workflows.prediction import predict_items
from matattn.workflows.report import results_table

__all__ = ["PropertyPrediction", "results_table", "run"]

# Remarks of Lightning that tell a user nothing.
_LIGHTNING_REMARKS = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    ".*Checkpoint directory .* exists and is not empty.*",
)


class PropertyPrediction(L.LightningModule):
    """L1 regression on normalised targets; labels that are NaN do not count.

    Args:
        network: batch -> [B, T].
        mean, std: of the training labels [T], in physical units.
        targets: names of the T properties, for metrics.
        optimizer: lr, betas, weight_decay, and ``schedule`` (a ``matattn.training.schedules``).
        averaging_epochs: the learning rate stays frozen over that many last epochs.
        ids: of the crystals, by row of the data set.
        folder: where the ids of a batch with a non-finite loss are written.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        targets: tuple[str, ...],
        optimizer: Mapping[str, Any],
        averaging_epochs: int,
        ids: Sequence[str],
        folder: Path,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.targets, self.settings = targets, dict(optimizer)
        self.averaging_epochs, self.ids, self.folder = averaging_epochs, ids, folder

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        known = ~batch.y.isnan()
        target = (batch.y.nan_to_num() - self.mean) / self.std
        error = (self.network(batch) - target).abs()
        loss = error[known].sum() / known.sum().clamp(min=1)
        if not torch.isfinite(loss):
            ids = [self.ids[row] for row in batch.row.tolist()]
            place = self.folder / "nonfinite_batch.json"
            write_json(place, {"epoch": self.current_epoch, "step": self.global_step, "ids": ids})
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch "
                f"{self.current_epoch + 1}); its crystals are listed in {place}; try a lower "
                "optimizer.lr"
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.y))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._error = torch.zeros_like(self.mean)
        self._count = torch.zeros_like(self.mean)

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        predicted = self.network(batch) * self.std + self.mean
        known = ~batch.y.isnan()
        self._error += torch.where(known, (predicted - batch.y).abs(), 0).sum(0)
        self._count += known.sum(0)

    def on_validation_epoch_end(self) -> None:
        mae = self._error / self._count
        seen = self._count > 0
        self.log("val/loss", (mae / self.std)[seen].mean())
        for name, value in zip(self.targets, mae, strict=True):
            self.log(f"val/mae/{name}", value)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self.settings
        optimizer = adamw(self.network, settings["lr"], settings["betas"], settings["weight_decay"])
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        frozen_from = total * (epochs - self.averaging_epochs) // epochs
        schedule = per_step(optimizer, settings["schedule"], total, frozen_from)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train as configured and fill the run folder; returns the content of ``metrics.json``."""
    task = config["task"]
    if task["select"] not in ("final", "best"):
        raise ConfigError(f"task.select={task['select']!r}: choose final or best")
    share_cores(task["num_workers"])
    dataset: PropertyDataset = build(config["data"], "data")
    L.seed_everything(config["seed"], workers=True, verbose=False)
    targets = tuple(target.name for target in dataset.targets)
    network = build(config["model"], "model", num_targets=len(targets))
    mean, std = _normaliser(dataset)
    optimizer = dict(config["optimizer"])
    optimizer["schedule"] = build(optimizer["schedule"], "optimizer.schedule")
    averaging_epochs = task["averaging_epochs"]
    ids = [item.id for item in dataset.items]
    module = PropertyPrediction(
        network, mean, std, targets, optimizer, averaging_epochs, ids, folder
    )
    loaders = _loaders(dataset, network, task, config["seed"])
    shown = {"train/loss": "loss {:.4f}"}
    for target in dataset.targets:
        shown[f"val/mae/{target.name}"] = f"val {{:.4f}} {target.unit}"
    log = RunLog(folder / "metrics.csv", shown)
    best = ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        monitor="val/loss" if "val" in loaders else "train/loss",
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    callbacks: list[L.Callback] = [log, best]
    if averaging_epochs:
        callbacks.append(LastEpochsAveraging(averaging_epochs))
    logger = build(config["logger"], "logger", save_dir=folder) if config["logger"] else False
    with warnings.catch_warnings():
        for message in _LIGHTNING_REMARKS:
            warnings.filterwarnings("ignore", message=message)
        trainer = build(
            config["trainer"],
            "trainer",
            callbacks=callbacks,
            logger=logger,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # inference mode's tensors have no version counter, which kernels use for reuse
        )
        last = folder / "checkpoints" / "last.ckpt"
        trainer.fit(
            module,
            loaders["train"],
            loaders.get("val"),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
    if trainer.interrupted:
        raise KeyboardInterrupt
    if task["select"] == "best":
        state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
        module.load_state_dict(state)
    return _write_results(config, folder, dataset, module, log)


def _normaliser(dataset: PropertyDataset) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of the training labels [T]."""
    labels = dataset.labels()[dataset.rows("train")]
    std = np.nanstd(labels, axis=0)
    std[std == 0] = 1.0
    as_float = partial(torch.tensor, dtype=torch.float32)
    return as_float(np.nanmean(labels, axis=0)), as_float(std)


def _loaders(
    dataset: PropertyDataset, network: HasImageRule, task: Mapping[str, Any], seed: int
) -> dict[str, DataLoader]:
    for row, item in enumerate(dataset.items):
        item.row = row
    images = network.image_rule(task["tolerance"], task["merge"])
    loaders: dict[str, DataLoader] = {}
    for split in ("train", "val"):
        items = [dataset.items[row] for row in dataset.rows(split)]
        if not items:
            continue
        batch_size = min(task["batch_size"], len(items))
        train = split == "train"
        loaders[split] = DataLoader(
            cast(Dataset, items),  # any sequence will do
            batch_size=batch_size,
            sampler=EpochShuffle(len(items), seed) if train else None,
            drop_last=train,
            collate_fn=partial(collate, images=images),
            num_workers=task["num_workers"],
            persistent_workers=task["num_workers"] > 0,
        )
    if "train" not in loaders:
        raise ConfigError(f"{dataset.name}: no training rows in split {task!r}")
    return loaders


def _write_results(
    config: dict[str, Any],
    folder: Path,
    dataset: PropertyDataset,
    module: PropertyPrediction,
    log: RunLog,
) -> dict[str, Any]:
    network = module.network.cpu()
    predicted = predict_items(network, dataset.items, module.mean.cpu(), module.std.cpu())
    metrics = evaluate(dataset, predicted)
    metrics["parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    metrics["train_time_s"] = round(log.seconds, 1)
    metrics["rows"] = {split: len(dataset.rows(split)) for split in SPLITS}
    _write_predictions(folder / "predictions.csv", dataset, predicted)
    report.parity_plot(folder / "parity.png", dataset, predicted, metrics)
    report.loss_plot(folder / "loss.png", log.rows, dataset)
    description = {
        "targets": [{"name": t.name, "unit": t.unit} for t in dataset.targets],
        "normaliser": {"mean": module.mean.tolist(), "std": module.std.tolist()},
        "elements": dataset.elements(),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint(), "note": dataset.note},
        "metrics": metrics,
        "seed": config["seed"],
    }
    arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
    arguments["num_targets"] = len(dataset.targets)
    text = report.report_text(config, dataset, metrics, folder)
    bundle.save(folder / "model", network, arguments, description, report.card_text(text))
    write_text(folder / "report.md", text)
    write_json(folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    return metrics


def _write_predictions(path: Path, dataset: PropertyDataset, predicted: np.ndarray) -> None:
    labels = dataset.labels()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "target", "true", "predicted", "unit", "split"])
    for row, item in enumerate(dataset.items):
        for column, target in enumerate(dataset.targets):
            true = labels[row, column]
            shown = "" if np.isnan(true) else f"{true:.6g}"
            value = f"{predicted[row, column]:.6g}"
            writer.writerow([item.id, target.name, shown, value, target.unit, dataset.split[row]])
    write_text(path, text.getvalue())
