"""Train a network to predict fields on meshes: a surrogate of a PDE solver.

``run(config, folder, prepared)`` trains and writes the run folder: errors beside baselines, plots
of truth, prediction and error on the mesh, VTU files, report and the model bundle.
"""

from __future__ import annotations

import copy
import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader

from matattn import bundle
from matattn.citations import LICENCES
from matattn.config import build, require
from matattn.errors import ConfigError
from matattn.files import write_json, write_text
from matattn.meshes.baselines import baselines, relative_l2
from matattn.meshes.batch import InputScaling, MeshBatch, collate_meshes
from matattn.meshes.fields import FieldDataset, MeshSample
from matattn.meshes.files import write_vtu
from matattn.meshes.network import MeshNetwork
from matattn.training.averaging import ExponentialAverage
from matattn.training.processes import number_and_count, share_of_mean, summed
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import (
    check_settings,
    fit,
    log_loss,
    make_loaders,
    optimization,
    stop_unless_finite,
)
from matattn.workflows.meshes import report
from matattn.workflows.meshes.predict import FieldPredictor
from matattn.workflows.meshes.report import results_table

__all__ = ["FieldSurrogate", "prepare", "results_table", "run"]

SPLITS = ("train", "val", "test")
MOST_TRAIN = 200  # training samples whose errors are reported


class FieldSurrogate(L.LightningModule):
    r"""Regression with the relative L2 error of fields in physical units.

    .. math::
        L = \frac{1}{B T} \sum_{b, t} \frac{|\hat y_{bt} - y_{bt}|}{|y_{bt}|} + w G

    with norms over the nodes of mesh b and, on structured grids, G the same of the two central
    differences of :math:`\hat y` and y (``GridGradient``).

    Args:
        network: batch -> [nodes, T], normalised.
        mean, std: of the training fields [T], in physical units.
        targets: names of the T fields, for metrics.
        optimizer: lr, betas, weight_decay, and ``schedule``.
        ids: of the samples, by row of the data set.
        folder: where the ids of a batch with a non-finite loss are written.
        gradient: the term G, or None.
        gradient_weight: w.
        share_nodes: processes share the nodes of every mesh, not the meshes of a batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: MeshNetwork,
        mean: Tensor,
        std: Tensor,
        targets: tuple[str, ...],
        optimizer: Mapping[str, Any],
        ids: Sequence[str],
        folder: Path,
        gradient: GridGradient | None = None,
        gradient_weight: float = 0.0,
        share_nodes: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.targets, self.settings = targets, dict(optimizer)
        self.ids, self.folder = ids, folder
        self.gradient, self.gradient_weight = gradient, gradient_weight
        self.share_nodes = share_nodes

    def on_fit_start(self) -> None:
        if self.share_nodes:
            self.network.share_nodes()

    def transfer_batch_to_device(
        self, batch: MeshBatch, device: torch.device, dataloader_idx: int
    ) -> MeshBatch:
        return batch.to(device)

    def errors(self, batch: MeshBatch) -> tuple[Tensor, Tensor]:
        """Relative L2 errors [B, T], and the predicted fields."""
        predicted = self.network(batch) * self.std + self.mean
        total = summed if self.share_nodes else None
        return relative_errors(predicted, batch.y, batch.ptr, total), predicted

    def training_step(self, batch: MeshBatch, batch_idx: int) -> Tensor:
        errors, predicted = self.errors(batch)
        loss = errors.mean()
        if self.gradient is not None:
            loss = loss + self.gradient_weight * self.gradient(predicted, batch.y)
        stop_unless_finite(loss, self, self.folder, self.ids, batch.row, "meshes")
        log_loss(self, loss, len(batch))
        if self.share_nodes:  # every process has the whole loss, and the gradient of its nodes
            return loss * number_and_count()[1]
        return share_of_mean(loss, torch.tensor(len(batch)))

    def validation_step(self, batch: MeshBatch, batch_idx: int) -> None:
        errors = self.errors(batch)[0].mean(0)
        self.log("val/loss", errors.mean(), batch_size=len(batch), sync_dist=True)
        for name, error in zip(self.targets, errors, strict=True):
            self.log(f"val/relative_l2/{name}", error, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimization(self, self.network, self.settings, decay_norms=False)


def relative_errors(
    predicted: Tensor,
    true: Tensor,
    ptr: Tensor,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """|predicted - true| / |true| of each mesh and field [B, T], with norms over the nodes.

    ``total`` adds to the sums over nodes what other processes have.
    """
    sizes = ptr.diff().to(true.device)
    mesh = torch.repeat_interleave(sizes, output_size=len(true))
    zeros = true.new_zeros(len(sizes), true.shape[1])
    error, size = (zeros.index_add(0, mesh, x.square()) for x in (predicted - true, true))
    if total is not None:
        error, size = total(error), total(size)
    return ((error + 1e-30) / (size + 1e-30)).sqrt()


class GridGradient:
    """Sum of the relative L2 errors of both derivatives on a square grid, as published for Darcy.

    Central differences with zeros outside the grid and step 1 / n on n x n nodes; the prediction
    counts as zero on the boundary.
    """

    def __init__(self, grid: tuple[int, ...]) -> None:
        self.grid = grid
        self.inside = torch.zeros(*grid, 1)
        self.inside[1:-1, 1:-1] = 1

    def __call__(self, predicted: Tensor, true: Tensor) -> Tensor:
        true = true.unflatten(0, (-1, *self.grid))
        predicted = predicted.unflatten(0, (-1, *self.grid)) * self.inside.to(true.device)
        terms = []
        for axis in (1, 2):
            error, size = (
                self._difference(field, axis).flatten(1, 2).norm(dim=1)
                for field in (predicted - true, true)
            )
            terms.append((error / size).mean())
        return terms[0] + terms[1]

    def _difference(self, field: Tensor, axis: int) -> Tensor:
        after, before = field.roll(-1, axis), field.roll(1, axis)
        after.select(axis, -1).zero_()
        before.select(axis, 0).zero_()
        return (after - before) * self.grid[axis - 1] / 2


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes, built and checked."""

    dataset: FieldDataset
    network: MeshNetwork
    schedule: Schedule
    fingerprint: str  # of the data


def prepare(config: dict[str, Any]) -> Prepared:
    """Read or make the data and build the network; raises ConfigError or DataError."""
    task, optimizer = config["task"], config["optimizer"]
    number = (int, float)
    check_settings(config)
    require("task.ema", task["ema"], number, lambda x: 0 <= x < 1, "a number from 0 to below 1")
    require("task.export", task["export"], int, lambda n: n >= 0, "0 or more")
    weight = task["gradient_weight"]
    require("task.gradient_weight", weight, number, lambda x: x >= 0, "0 or more")
    if config["init_from"]:
        raise ConfigError("init_from starts trainings on crystals only, not on meshes")
    dataset: FieldDataset = build(config["data"], "data")
    if task["select"] == "best" and not len(dataset.rows("val")):
        raise ConfigError(f"task.select=best needs validation samples, and {dataset.name} has none")
    if weight and (dataset.grid is None or len(dataset.grid) != 2):
        raise ConfigError(
            f"task.gradient_weight={weight} needs fields on a plane structured grid, and "
            f"{dataset.name} has none"
        )
    schedule = build(optimizer["schedule"], "optimizer.schedule")
    L.seed_everything(config["seed"], workers=True, verbose=False)
    network = build(config["model"], "model", **_widths(dataset))
    if task["share_nodes"] and (weight or not network.can_share_nodes):
        raise ConfigError(
            "task.share_nodes=true needs model=flare with model.queries=fixed and "
            "task.gradient_weight=0"
        )
    return Prepared(dataset, network, schedule, dataset.fingerprint())


def _widths(dataset: FieldDataset) -> dict[str, int]:
    inputs = len(dataset.coordinates) + len(dataset.inputs)
    return {"num_inputs": inputs, "num_targets": len(dataset.targets)}


def run(config: dict[str, Any], folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Train as configured and fill the run folder; returns the content of ``metrics.json``."""
    task, dataset = config["task"], prepared.dataset
    scaling, normaliser = InputScaling.fit(dataset), _normaliser(dataset)
    gradient = GridGradient(dataset.grid) if task["gradient_weight"] and dataset.grid else None
    module = FieldSurrogate(
        prepared.network,
        *normaliser,
        tuple(field.name for field in dataset.targets),
        {**config["optimizer"], "schedule": prepared.schedule},
        [item.id for item in dataset.items],
        folder,
        gradient,
        task["gradient_weight"],
        task["share_nodes"],
    )
    shown = {"train/loss": "loss {:.4f}", "val/loss": "val {:.4f}"}
    log = RunLog(folder / "metrics.csv", shown)
    average = ExponentialAverage(task["ema"]) if task["ema"] else None
    loaders = _loaders(dataset, scaling, task, config["seed"])
    device = fit(config, folder, module, loaders, log, [average] if average else [])
    return _write_results(config, folder, prepared, scaling, normaliser, log, average, device)


def _normaliser(dataset: FieldDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the training fields [T], over all nodes of all samples."""
    fields = np.concatenate([sample.y for sample in dataset.samples("train")]).astype(np.float64)
    as_float = partial(torch.tensor, dtype=torch.float32)
    return as_float(fields.mean(0)), as_float(fields.std(0) + 1e-8)


def _loaders(
    dataset: FieldDataset, scaling: InputScaling, task: Mapping[str, Any], seed: int
) -> dict[str, DataLoader]:
    def collate(rows: list[int]) -> MeshBatch:
        share = number_and_count() if task["share_nodes"] else (0, 1)
        return collate_meshes([dataset.items[row] for row in rows], scaling, rows, share)

    rows = {split: dataset.rows(split).tolist() for split in ("train", "val")}
    filled = {split: found for split, found in rows.items() if found}
    size = None if task["share_nodes"] else lambda row: len(dataset.items[row].pos)
    return make_loaders(filled, task["batch_size"], seed, collate, size)


def _write_results(
    config: dict[str, Any],
    folder: Path,
    prepared: Prepared,
    scaling: InputScaling,
    normaliser: tuple[Tensor, Tensor],
    log: RunLog,
    average: ExponentialAverage | None,
    device: torch.device,
) -> dict[str, Any]:
    dataset, network = prepared.dataset, prepared.network.to(device)
    mean, std = (values.tolist() for values in normaliser)
    description: dict[str, Any] = {
        key: [asdict(field) for field in getattr(dataset, key)]
        for key in ("coordinates", "inputs", "targets")
    }
    description |= {
        "kind": "meshes",
        "input_scaling": asdict(scaling),
        "normaliser": {"mean": mean, "std": std},
        "data": {"name": dataset.name, "fingerprint": prepared.fingerprint, "note": dataset.note},
        "seed": config["seed"],
        "licence": LICENCES.get(dataset.name, ""),
    }
    predictor = FieldPredictor(network, description, device)
    evaluated = {split: _evaluated(dataset, split) for split in SPLITS if len(dataset.rows(split))}
    predicted = {split: list(predictor.predict(s)) for split, s in evaluated.items()}
    errors = {split: _errors(s, predicted[split]) for split, s in evaluated.items()}
    metrics = _metrics(dataset, evaluated, errors)
    if average:
        averaged = FieldPredictor(copy.deepcopy(network), description, device)
        averaged.network.load_state_dict(average.weights, strict=False)
        for split, samples in evaluated.items():
            found = _errors(samples, list(averaged.predict(samples))).mean(0)
            for field, value in zip(dataset.targets, found, strict=True):
                metrics[split][field.name]["relative_l2_ema"] = float(value)
    metrics["parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    metrics["train_time_s"] = round(log.seconds, 1)
    metrics["rows"] = {split: len(dataset.rows(split)) for split in SPLITS}
    description["metrics"] = metrics
    _write_errors(folder / "predictions.csv", dataset, evaluated, errors)
    shown = "test" if "test" in evaluated else "val" if "val" in evaluated else "train"
    picked = report.typical(errors[shown])
    report.field_plots(folder, dataset, evaluated[shown], predicted[shown], picked)
    report.loss_plot(folder / "loss.png", log.rows)
    report.spectrum_plot(folder / "spectrum.png", network, evaluated[shown][picked[1]],
                               scaling)  # fmt: skip
    for number in range(min(config["task"]["export"], len(evaluated[shown]))):
        _export(folder / "fields", dataset, evaluated[shown][number], predicted[shown][number])
    arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
    arguments |= _widths(dataset)
    card = report.report_text(config, dataset, metrics, shown, "PATH/TO/THIS/FOLDER")
    bundle.save(folder / "model", network, arguments, description, report.card_text(card))
    text = report.report_text(config, dataset, metrics, shown, os.path.relpath(folder / "model"))
    write_text(folder / "report.md", text)
    write_json(folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    return metrics


def _evaluated(dataset: FieldDataset, split: str) -> list[MeshSample]:
    samples = dataset.samples(split)
    return samples[:: -(-len(samples) // MOST_TRAIN)] if split == "train" else samples


def _errors(samples: Sequence[MeshSample], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Relative L2 errors [n, T]."""
    return np.stack([relative_l2(s.y, p) for s, p in zip(samples, predicted, strict=True)])


def _metrics(
    dataset: FieldDataset, evaluated: dict[str, list[MeshSample]], errors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """{split: {field: relative_l2, unit, n, baselines}}; baselines of training rows say nothing."""
    metrics: dict[str, Any] = {}
    floors = baselines(dataset)
    for split, samples in evaluated.items():
        known = {} if split == "train" else {
            name: _errors(samples, list(map(predict, samples))).mean(0)
            for name, predict in floors.items()
        }  # fmt: skip
        metrics[split] = {
            field.name: {
                "relative_l2": float(errors[split][:, column].mean()),
                "unit": field.unit,
                "n": len(samples),
                "baselines": {name: float(found[column]) for name, found in known.items()},
            }
            for column, field in enumerate(dataset.targets)
        }
    return metrics


def _write_errors(
    path: Path,
    dataset: FieldDataset,
    evaluated: dict[str, list[MeshSample]],
    errors: dict[str, np.ndarray],
) -> None:
    """One row for each sample and field: its relative L2 error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "target", "nodes", "relative_l2", "split"])
    for split, samples in evaluated.items():
        for sample, values in zip(samples, errors[split], strict=True):
            for field, value in zip(dataset.targets, values, strict=True):
                writer.writerow([sample.id, field.name, len(sample.pos), f"{value:.6g}", split])
    write_text(path, text.getvalue())


def _export(folder: Path, dataset: FieldDataset, sample: MeshSample, predicted: np.ndarray) -> None:
    """A VTU file with inputs, true fields, predictions and errors."""
    fields = {field.name: sample.x[:, column] for column, field in enumerate(dataset.inputs)}
    for column, field in enumerate(dataset.targets):
        true, made = sample.y[:, column], predicted[:, column]
        fields |= {
            field.name: true,
            f"{field.name}_predicted": made,
            f"{field.name}_error": made - true,
        }
    write_vtu(folder / f"{sample.id}.vtu", sample, fields)
